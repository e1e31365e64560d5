import numpy as np
import pytest
import torch

from lightning_privacy.attacks.membership.confidence import ScaledConfidence
from lightning_privacy.attacks.membership.stumps import balanced_losses, boost_stumps
from lightning_privacy.attacks.membership.worst_case import WorstCaseAttack, sorted_log_odds
from lightning_privacy.core.results import Signals
from lightning_privacy.metrics.membership import auroc


def test_sorted_log_odds_equal_their_definition_and_do_not_saturate():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 2, 12, generator=g, dtype=torch.float64)
    p = logits.softmax(2).sort(2, descending=True).values[:, :, :10]
    assert torch.allclose(sorted_log_odds(logits, 10), (p / (1 - p)).log(), atol=1e-10)
    assert sorted_log_odds(torch.tensor([[[0.0, 400.0, 0.0]]]), 1).item() == pytest.approx(400 - np.log(2))


def test_first_stump_takes_the_best_split_with_newton_leaves():
    # 6 members above 0.5 of 12 records; weights are 1, so G = -3 or 3, H = 1.5 and a leaf is 3 / 2.5 at full rate
    x = torch.tensor([[i / 11, (7 * i % 12) / 11] for i in range(12)], dtype=torch.float64)
    y = (x[:, 0] > 0.5).long()
    stump = boost_stumps(x, y, torch.zeros(12, dtype=torch.float64), rounds=1, rate=1.0, leaf=1)
    assert stump.feature.tolist() == [0]
    assert stump.cut.tolist() == pytest.approx([0.5])
    assert [float(stump.low), float(stump.high)] == pytest.approx([-1.2, 1.2])


def test_boosting_follows_sklearn_to_a_like_loss():
    from sklearn.ensemble import GradientBoostingClassifier

    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=g, dtype=torch.float64)
    y = ((x[:, 0].abs() < 0.8) ^ (torch.rand(300, generator=g) < 0.1)).long()
    ours = boost_stumps(x, y, torch.zeros(300, dtype=torch.float64), rounds=100, leaf=10)
    loss = float(balanced_losses(ours.steps(x).sum(1, keepdim=True), y))
    theirs = GradientBoostingClassifier(n_estimators=100, max_depth=1, min_samples_leaf=10, random_state=0)
    weight = np.where(y == 1, 150 / int(y.sum()), 150 / int((1 - y).sum()))
    margin = torch.tensor(theirs.fit(x, y, sample_weight=weight).decision_function(x)).unsqueeze(1)
    assert loss == pytest.approx(float(balanced_losses(margin, y)), abs=0.02)
    assert loss < 0.5


def test_no_split_that_leaves_enough_records_gives_no_stump():
    same = torch.ones(10, 2, dtype=torch.float64)
    stumps = boost_stumps(same, torch.tensor([0, 1] * 5), torch.zeros(10, dtype=torch.float64), rounds=5)
    assert stumps.steps(same).sum(1).tolist() == [0.0] * 10


def moderate_confidence(n, member, seed):
    """Members' confidence is middling, others' low or high, a tenth the other way: no line tells them apart."""
    g = torch.Generator().manual_seed(seed)
    phi = 2 + torch.rand(n, generator=g)
    middling = (torch.rand(n, generator=g) < 0.9) == member
    phi = torch.where(middling, phi, torch.where(torch.rand(n, generator=g) < 0.5, 2 * phi - 4, 2 * phi - 1))
    logits = torch.stack([phi, torch.zeros(n)], 1).unsqueeze(1)
    return Signals(tuple(map(str, range(n))), logits=logits, labels=torch.zeros(n, dtype=torch.long))


def test_a_leak_that_no_threshold_sees_is_learnt():
    roles = [moderate_confidence(100, i % 2 == 0, i) for i in range(4)]
    attack = WorstCaseAttack()
    assert attack.fit(roles[0], roles[1])
    assert auroc(attack.score(roles[2]), attack.score(roles[3])) > 0.8  # 0.9 were the right rule known
    straight = (attack.ridge.log_odds(attack.features(x)) for x in roles[2:])
    assert abs(auroc(*straight) - 0.5) < 0.15
    assert abs(auroc(*(ScaledConfidence().score(x) for x in roles[2:])) - 0.5) < 0.15


def test_too_few_rounds_are_reported_as_not_converged():
    roles = [moderate_confidence(100, i % 2 == 0, i) for i in range(2)]
    assert WorstCaseAttack(rounds=2).fit(*roles) is False


def test_copies_unlike_the_training_do_not_hide_what_the_record_says():
    g = torch.Generator().manual_seed(0)
    roles = [moderate_confidence(100, i % 2 == 0, i) for i in range(4)]
    roles = [
        Signals(x.record_ids, logits=torch.cat([x.logits, 9 * torch.randn(100, 4, 2, generator=g)], 1), labels=x.labels)
        for x in roles
    ]
    attack = WorstCaseAttack()
    attack.fit(roles[0], roles[1])
    assert auroc(attack.score(roles[2]), attack.score(roles[3])) > 0.75


@pytest.mark.parametrize("sides", [(2, 2), (3, 20), (20, 3)])
def test_few_records_leave_the_regression_alone(sides):
    g = torch.Generator().manual_seed(0)
    sure, unsure = (
        Signals(
            tuple(f"{shift}{i}" for i in range(n)),
            logits=torch.randn(n, 1, 3, generator=g) + shift * torch.tensor([1.0, 0, 0]),
            labels=torch.zeros(n, dtype=torch.long),
        )
        for n, shift in zip(sides, (6, 0), strict=True)
    )
    attack = WorstCaseAttack()
    attack.fit(sure, unsure)
    assert attack.stumps.steps(attack.features(sure)).abs().sum() == 0
    assert auroc(attack.score(sure), attack.score(unsure)) > 0.9
