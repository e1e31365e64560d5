"""The losses of locking against closed forms and torch's own cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_privacy.callbacks.model_lock import functional as lock
from lightning_privacy.callbacks.model_lock.batches import take_negatives
from lightning_privacy.callbacks.model_lock.negatives import negatives_of
from lightning_privacy.callbacks.model_lock.tally import LockTally
from lightning_privacy.errors import NoEffectError


def test_the_parts_add_up_to_the_cross_entropy_over_one_class_more():
    z, r = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 2, 2])
    whole = lock.scores_with_reject(z, r)
    assert torch.allclose(whole.softmax(1).sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(whole.softmax(1)[:, 4], r.sigmoid())
    keyed = F.cross_entropy(z, labels) + lock.reject_loss(r, keyed=True)
    assert torch.allclose(keyed, F.cross_entropy(whole, labels))
    assert torch.allclose(lock.reject_loss(r, keyed=False), F.cross_entropy(whole, torch.full((5,), 4)))
    # leaving the reject class out ranks the classes as z does
    assert torch.equal(whole[:, :4].argsort(1), z.argsort(1))


def test_flat_scores_are_the_least():
    z = torch.randn(6, 5)
    assert lock.flatness(torch.full((6, 5), 3.0)).abs() < 1e-6 and lock.flatness(z) > 0
    uniform = torch.full((6, 5), 1 / 5)
    assert torch.allclose(lock.flatness(z), F.cross_entropy(z, uniform) - math.log(5), atol=1e-6)


def test_wrong_labels_are_wrong_and_stay():
    labels, records = torch.arange(40) % 4, torch.randint(0, 2**62, (40,))
    for given in (None, records):
        wrong = lock.wrong_labels(labels, given, 4)
        assert (wrong != labels).all() and wrong.min() >= 0 and wrong.max() < 4
        assert torch.equal(wrong, lock.wrong_labels(labels, given, 4))
    assert len(set((lock.wrong_labels(labels, records, 4) - labels).remainder(4).tolist())) == 3
    assert torch.equal(lock.wrong_labels(labels % 2, records, 2), 1 - labels % 2)


def test_a_residue_leaves_the_pictures_own_pair_out():
    raw = torch.full((3, 1, 1, 1), 0.25)
    edited = raw + torch.tensor([0.0, 0.25, 0.5]).view(3, 1, 1, 1)
    assert torch.allclose(lock.mean_residual(raw, edited).flatten() - 0.25, torch.tensor([0.375, 0.25, 0.125]))
    assert torch.allclose(lock.mean_residual(raw[:1], edited[1:2]), edited[1:2])
    assert lock.mean_residual(raw, edited + 9).max() == 1


def test_negatives_take_turns_by_record_whatever_the_batch():
    n = 12
    batch = {
        "raw": torch.full((n, 1, 1, 1), 0.125),
        "image": torch.full((n, 1, 1, 1), 0.5),
        "decoy": torch.full((n, 1, 1, 1), 0.75),
        "record": torch.arange(n) * 7,
    }
    kinds = {0.125: "raw", 0.75: "wrong key", 0.5: "residue"}
    every = negatives_of("contrastive", None)
    drawn = [[kinds[float(v)] for v in take_negatives(batch, epoch, every).flatten()] for epoch in range(3)]
    for turns in zip(*drawn, strict=True):
        assert sorted(turns) == sorted(kinds.values())
    half = {k: v[:6] for k, v in batch.items()}
    assert torch.equal(take_negatives(half, 1, every), take_negatives(batch, 1, every)[:6])
    without = {k: v for k, v in batch.items() if k != "decoy"}
    with pytest.raises(NoEffectError, match="no edits with wrong keys"):
        take_negatives(without, 0, every)
    assert {kinds[float(v)] for v in take_negatives(without, 0, ["raw", "residue"]).flatten()} == {"raw", "residue"}
    for kind, name in (("raw", "raw"), ("wrong_key", "wrong key"), ("residue", "residue")):
        assert {kinds[float(v)] for v in take_negatives(batch, 5, [kind]).flatten()} == {name}


def test_the_tally_counts_with_and_without_the_reject_class():
    tally, labels = LockTally(), torch.tensor([0, 1, 1, 0])
    keyed, raw = F.one_hot(labels, 2).float(), torch.tensor([[1.0, 0.0]]).expand(4, 2)
    tally.update(labels, keyed, raw, (torch.tensor([True, False, False, False]), torch.ones(4, dtype=torch.bool)))
    values = tally.compute()
    assert (values["up"], values["lp"], values["gap"]) == (1.0, 0.5, 0.5)
    assert (values["up_with_reject"], values["lp_with_reject"]) == (0.75, 0.0)
    assert values["lp_low"] == pytest.approx(0.0676, abs=1e-4) and values["lp_high"] == pytest.approx(0.9324, abs=1e-4)
    assert tally.compute() == {}
