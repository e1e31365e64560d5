"""Who is IN which shadow model, and what data a shadow gets."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_privacy.core.ranks import alone, gather_rows, mean_over_ranks, world_size
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.shadows.evidence import ShadowEvidence
from lightning_privacy.shadows.halves import in_half
from lightning_privacy.shadows.shadow_split import Records, ShadowSplit, shadow_roles
from lightning_privacy.shadows.sharing import resolve_share
from lightning_privacy.testing.toy_data import ToyImages

ROLES = ("member", "attack_nonmember", "holdout")


def _split(n=40, repeat=False, **options):
    data = ToyImages(n=n, size=4)
    if repeat:  # every picture twice
        data.setup("fit")
        data.dataset.images[n // 2 :] = data.dataset.images[: n // 2]
        data.dataset.ids[n // 2 :] = data.dataset.ids[: n // 2]
        data.setup = lambda stage: None
    split = MembershipSplit(data, **options)
    split.prepare_data()
    split.setup("fit")
    return split


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=2), min_size=2, max_size=20), st.integers(0, 5))
def test_every_record_is_in_exactly_half_and_equal_names_share_a_side(names, seed):
    sides = [in_half(names, seed, shadow) for shadow in range(8)]
    assert all(sum(side[i] for side in sides) == 4 for i in range(len(names)))
    for side in sides:
        assert all(a == b for x, a in zip(names, side, strict=True) for y, b in zip(names, side, strict=True) if x == y)
    distinct = len(set(names))
    assert len({n for n, a in zip(names, sides[0], strict=True) if a}) == distinct // 2


def test_halves_do_not_depend_on_the_order_of_the_records_and_differ_by_pair_and_seed():
    names = [f"{i}" for i in range(32)]
    assert in_half(names, 0, 4) == in_half(names[::-1], 0, 4)[::-1]
    assert in_half(names, 0, 0) != in_half(names, 0, 2)
    assert in_half(names, 0, 0) != in_half(names, 1, 0)


def test_a_shadows_roles_are_the_targets_with_other_members():
    split = _split(60)
    records = Records.of(split, ROLES)
    first, second = (shadow_roles(records, 3, shadow) for shadow in (0, 1))
    pool = sorted(i for role in ROLES for i in split.roles[role])
    assert sorted(first["member"] + second["member"]) == pool
    for roles in (first, second):
        assert roles["val"] == split.roles["val"]
        assert roles["aux_nonmember"] == split.roles["aux_nonmember"]
        assert abs(len(roles["aux_member"]) - len(roles["member"]) / 2) < 1  # the target's share is one half
        assert sorted(roles["attack_nonmember"] + roles["holdout"]) == sorted(set(pool) - set(roles["member"]))
        assert abs(len(roles["attack_nonmember"]) - len(roles["holdout"])) <= 1  # 12 and 12 in the target


def test_equal_pictures_are_on_one_side():
    split = _split(40, repeat=True)
    records = Records.of(split, ROLES)
    inside = records.inside(0, 0)
    by_content = {}
    for index, is_in in inside.items():
        by_content.setdefault(records.contents[index], set()).add(is_in)
    assert all(len(sides) == 1 for sides in by_content.values())
    assert len(by_content) < len(inside)


def test_shadow_split_trains_on_its_members_alone_and_leaves_the_target_as_it_was():
    split = _split()
    records = Records.of(split, ROLES)
    before = split.split_hash, dict(split.roles), split.inner.trainer
    shadow = ShadowSplit(split, shadow_roles(records, 0, 1), records.contents, order_seed=5, batch_size=3)
    shadow.prepare_data()
    shadow.setup("fit")
    seen = [int(record) for batch in shadow.train_dataloader() for record in batch["record"]]
    assert sorted(seen) == sorted(int(split.record_ids[i][:16], 16) >> 1 for i in shadow.roles["member"])
    assert len(next(iter(shadow.train_dataloader()))["record"]) == 3
    assert (split.split_hash, dict(split.roles), split.inner.trainer) == before
    assert shadow.split_hash != split.split_hash


def test_shadows_never_train_on_what_they_choose_or_defend_with():
    with pytest.raises(InputError, match="cannot hold the role\\(s\\) aux_nonmember, val"):
        Records.of(_split(), ("member", "val", "aux_nonmember"))


def test_a_share_that_is_none_is_refused():
    assert resolve_share((2, 3)) == (2, 3)
    with pytest.raises(InputError, match="names no part"):
        resolve_share((3, 3))


def test_evidence_is_taken_by_record():
    evidence = ShadowEvidence(("a", "b"), torch.arange(4.0).view(2, 2, 1).double(), torch.tensor([[True, False]] * 2))
    assert evidence.take(["b", "a"]).confidence.flatten().tolist() == [2.0, 3.0, 0.0, 1.0]
    with pytest.raises(InputError, match="1 records were not observed"):
        evidence.take(["c"])


def test_alone_ends_with_its_block_also_after_an_error(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert world_size() == 2
    rows = torch.ones(2, 3)
    with suppress(ValueError), alone():
        assert world_size() == 1
        assert torch.equal(gather_rows(rows), rows)
        assert torch.equal(mean_over_ranks(rows), rows)
        raise ValueError
    assert world_size() == 2
