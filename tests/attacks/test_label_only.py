import pytest
import torch

from lightning_privacy.attacks.membership.label_only import AugmentationAgreement, BoundaryDistance
from lightning_privacy.attacks.membership.selection import fit_attack
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc


def answers(right):
    """Logits of two classes; the true class is 0."""
    right = torch.as_tensor(right)
    logits = torch.stack([right.float(), 1 - right.float()], 2)
    return Signals(tuple(map(str, range(len(right)))), logits=logits, labels=torch.zeros(len(right), dtype=torch.long))


def drawn(n, share, queries, seed):
    return answers(torch.rand(n, queries, generator=torch.Generator().manual_seed(seed)) < share)


def test_one_query_is_the_gap_attack():
    attack = AugmentationAgreement()
    attack.fit(drawn(100, 0.9, 1, 0), drawn(100, 0.6, 1, 1))
    right, wrong = attack.score(answers([[True], [False]])).tolist()
    assert right > wrong
    members, others = drawn(100, 0.9, 1, 2), drawn(100, 0.6, 1, 3)
    gap = float(members.logits[:, 0, 0].mean() - others.logits[:, 0, 0].mean())
    assert auroc(attack.score(members), attack.score(others)) == pytest.approx(0.5 + gap / 2)


def test_only_the_predicted_class_is_read():
    attack = AugmentationAgreement()
    fit = drawn(50, 0.9, 4, 0), drawn(50, 0.6, 4, 1)
    attack.fit(*fit)
    seen = drawn(20, 0.7, 4, 2)
    scaled = Signals(seen.record_ids, logits=seen.logits * 7, labels=seen.labels)
    assert torch.equal(attack.score(seen), attack.score(scaled))


def test_more_agreeing_copies_look_more_like_a_member():
    attack = AugmentationAgreement()
    attack.fit(drawn(300, 0.9, 8, 0), drawn(300, 0.7, 8, 1))
    rows = torch.arange(8).unsqueeze(0) < torch.tensor([[8], [6], [3]])
    assert attack.score(answers(rows)).diff().max() < 0
    # two binomials of 8 trials, 0.9 against 0.7: the AUROC is 0.888
    assert auroc(*(attack.score(drawn(300, p, 8, 5 + i)) for i, p in enumerate((0.9, 0.7)))) > 0.85


def test_another_number_of_queries_is_refused():
    attack = AugmentationAgreement()
    attack.fit(drawn(20, 0.9, 4, 0), drawn(20, 0.6, 4, 1))
    with pytest.raises(InputError, match="4 queries but is given 1"):
        attack.score(drawn(5, 0.9, 1, 0))


def test_copies_help_on_the_overfitted_digits(overfitted_digits):
    digits = overfitted_digits
    roles = [digits.signals(digits.rows[x], 5) for x in ("aux_member", "attack_nonmember", "member", "holdout")]
    fitted = fit_attack(AugmentationAgreement(), roles[0], roles[1])
    assert auroc(fitted.score(roles[2]), fitted.score(roles[3])) > 0.7


def test_the_distance_is_the_score():
    signals = Signals(("a", "b"), boundary_distance=torch.tensor([0.25, 0.0]))
    assert BoundaryDistance().score(signals).tolist() == [0.25, 0.0]
