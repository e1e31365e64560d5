"""Attacks on parts of the records: each part's number is that of its records alone, and no part points at single people."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_privacy.callbacks.audits.membership_audit import audit_membership
from lightning_privacy.callbacks.audits.slices import slice_scores, slices_of, subgroups_of
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError, SplitError
from lightning_privacy.metrics.functional.delong import delong_interval
from lightning_privacy.testing.settings import bright_background, disc_classifier, split_images


def signals(labels, loss=None):
    loss = None if loss is None else loss.unsqueeze(1)
    return Signals(tuple(f"{i:064x}" for i in range(len(labels))), labels=labels, loss=loss)


def by_part(rows):
    return {(row["by"], row["value"]): row for row in rows}


def test_a_part_has_the_auroc_of_its_own_records_with_an_interval_for_all_parts_at_once():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    member, nonmember = torch.randn(90, generator=g) + labels.float(), torch.randn(90, generator=g)
    rows = by_part(slice_scores(slices_of(signals(labels), signals(labels)), member, nonmember))
    assert list(rows) == [("class", "0"), ("class", "1"), ("class", "2")]
    for k in range(3):
        m, n = member[labels == k], nonmember[labels == k]
        found = rows["class", str(k)]
        truth = roc_auc_score([1] * 30 + [0] * 30, torch.cat([m, n]))
        assert found["auroc"]["value"] == pytest.approx(truth)
        assert found["n"] == {"member": 30, "holdout": 30}
        alone = delong_interval(m, n)
        assert found["auroc"]["low"] < alone.low and found["auroc"]["high"] > alone.high
        assert found["level"] == pytest.approx(1 - 0.05 / 3)


def test_parts_with_few_records_on_a_side_are_left_out():
    many, few = torch.tensor([0] * 20 + [1] * 9), torch.tensor([0] * 10 + [1] * 19)
    parts = slices_of(signals(many), signals(few))
    assert list(parts["class"]) == ["0"]
    assert slices_of(signals(torch.arange(30)), signals(torch.arange(30))) == {}


def test_quarters_are_cut_at_the_losses_of_non_members():
    loss = torch.arange(80.0)
    parts = slices_of(signals(torch.arange(80), loss / 2), signals(torch.arange(80), loss))["loss_quantile"]
    assert [len(places[1]) for places in parts.values()] == [20, 20]
    assert list(parts) == ["lowest quarter", "second quarter"]  # members' losses end where the upper half begins


def test_an_audit_judges_by_class_by_loss_and_by_declared_subgroup():
    module, split = disc_classifier(), split_images()
    split.setup("fit")
    results = audit_membership(module, split, ["averaged_loss"], bootstrap=10, subgroup=bright_background)
    rows = by_part(results[0].extra["slices"])
    kinds = {by for by, _ in rows}
    assert "subgroup" in kinds or min(len(split.indices(r)) for r in ("eval_member", "holdout")) < 20
    for row in rows.values():
        assert min(row["n"].values()) >= 10 and 0 <= row["auroc"]["low"] <= row["auroc"]["high"] <= 1
    values = subgroups_of(split, bright_background, "holdout")
    assert len(values) == len(split.indices("holdout"))


def test_a_subgroup_that_the_batches_do_not_have_is_one_clear_error():
    split = split_images()
    split.setup("fit")
    with pytest.raises(InputError, match="no sensitive attribute `smoker`"):
        subgroups_of(split, "smoker", "holdout")

    class Short:
        roles, record_ids = split.roles, split.record_ids
        indices = split.indices

        def loader(self, role, batch_size=None):
            return list(split.loader(role))[:-1]

    with pytest.raises(SplitError, match="but the role has"):
        subgroups_of(Short(), bright_background, "holdout")
