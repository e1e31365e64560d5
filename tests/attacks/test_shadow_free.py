"""What every attack without shadow models must keep, on an over-fitted digits classifier and on noise."""

from dataclasses import replace

import pytest
import torch

from lightning_privacy.attacks.membership.confidence import ClassConfidence, ModifiedEntropy, ScaledConfidence
from lightning_privacy.attacks.membership.label_only import AugmentationAgreement, BoundaryDistance
from lightning_privacy.attacks.membership.population import Population
from lightning_privacy.attacks.membership.quantile import QuantileRegression
from lightning_privacy.attacks.membership.selection import fit_attack
from lightning_privacy.attacks.membership.worst_case import WorstCaseAttack
from lightning_privacy.core.results import MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc, null_auroc_sd

ATTACKS = (
    ScaledConfidence,
    ClassConfidence,
    ModifiedEntropy,
    Population,
    WorstCaseAttack,
    QuantileRegression,
    AugmentationAgreement,
)
SOFT = tuple(attack for attack in ATTACKS if attack is not AugmentationAgreement)


def noise(n, seed, classes=4, queries=2):
    g = torch.Generator().manual_seed(seed)
    return Signals(
        tuple(f"{seed:04d}{i:04d}" for i in range(n)),
        logits=3 * torch.randn(n, queries, classes, generator=g),
        embedding=torch.randn(n, 6, generator=g),
        labels=torch.randint(classes, (n,), generator=g),
        boundary_distance=torch.rand(n, generator=g),
    )


def fit_and_score(attack, signals):
    attack.fit(signals, signals)
    attack.score(signals)


@pytest.mark.parametrize("attack", [*ATTACKS, BoundaryDistance])
def test_the_contract_is_kept(attack):
    assert isinstance(attack(), MembershipAttack)
    assert isinstance(attack().learns, bool)
    assert attack().access
    fit_m, fit_n, seen = noise(30, 0), noise(40, 1), noise(20, 2)
    state, outcomes = torch.get_rng_state(), []
    for _ in range(2):
        fresh = attack()
        with torch.inference_mode():
            assert isinstance(fresh.fit(fit_m, fit_n, seed=3), bool)
            outcomes.append(fresh.score(seen))
    assert outcomes[0].shape == (20,)
    assert outcomes[0].dtype == torch.float64
    assert torch.equal(*outcomes)
    assert torch.equal(torch.get_rng_state(), state)
    nothing = Signals(fit_m.record_ids)
    with pytest.raises(InputError, match=attack.name):
        fresh.score(nothing)


@pytest.mark.parametrize(
    ("attack", "least"),
    [
        (ScaledConfidence, 0.7),
        (ClassConfidence, 0.7),
        (ModifiedEntropy, 0.7),
        (Population, 0.7),
        (WorstCaseAttack, 0.75),
        (QuantileRegression, 0.7),
        (AugmentationAgreement, 0.62),
    ],
)
def test_members_of_an_overfitted_classifier_score_higher(overfitted_digits, attack, least):
    digits = overfitted_digits
    fitted = fit_attack(attack(), digits.aux_member, digits.attack_nonmember, seed=0)
    assert fitted.converged
    assert fitted.sign == 1
    assert fitted.fit_auroc > least - 0.05
    assert auroc(fitted.score(digits.member), fitted.score(digits.holdout)) > least


@pytest.mark.parametrize("attack", [*ATTACKS, BoundaryDistance])
def test_noise_stays_at_chance(attack):
    seeds = 8 if attack is WorstCaseAttack else 12
    outcomes, fits = [], []
    for seed in range(seeds):
        fit_m, fit_n, member, holdout = (noise(n, 10 * seed + i) for i, n in enumerate((40, 60, 40, 60)))
        if attack is WorstCaseAttack:  # its own folds are enough work
            fitted = attack(rounds=30)
            fitted.fit(fit_m, fit_n, seed)
        else:
            fitted = fit_attack(attack(), fit_m, fit_n, seed)
            fits.append(fitted.fit_auroc)
        outcomes.append(auroc(fitted.score(member), fitted.score(holdout)))
    bound = 3.5 * null_auroc_sd(40, 60) / seeds**0.5
    assert abs(sum(outcomes) / seeds - 0.5) < bound
    assert not fits or abs(sum(fits) / seeds - 0.5) < 2 * bound


@pytest.mark.parametrize("attack", ATTACKS)
def test_renaming_the_classes_changes_no_score(attack):
    order = torch.tensor([2, 0, 3, 1])  # the new class k is the old class order[k]
    scores = []
    for rename in (False, True):
        roles = [noise(n, i) for i, n in enumerate((40, 50, 30))]
        if rename:
            roles = [replace(x, logits=x.logits[:, :, order], labels=order.argsort()[x.labels]) for x in roles]
        fitted = attack()
        fitted.fit(roles[0], roles[1], seed=1)
        scores.append(fitted.score(roles[2]))
    assert torch.allclose(*scores, atol=1e-8)


@pytest.mark.parametrize("attack", SOFT)
def test_records_that_float32_probabilities_cannot_tell_apart_are_ordered(attack):
    roles = [noise(40, i, queries=1) for i in range(2)]
    # members are surer of their class
    lifted = roles[0].logits.scatter_add(2, roles[0].labels.view(-1, 1, 1), torch.full((40, 1, 1), 8.0))
    fitted = attack()
    fitted.fit(replace(roles[0], logits=lifted), roles[1])
    logits = torch.tensor([[[60.0, 0.0, 0.0, 0.0]], [[90.0, 0.0, 0.0, 0.0]]])
    assert logits.softmax(2)[:, 0, 0].tolist() == [1.0, 1.0]
    sure = Signals(("a", "b"), logits=logits, labels=torch.tensor([0, 0]), embedding=torch.ones(2, 6))
    low, high = fitted.score(sure).tolist()
    assert low < high


@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_outputs_are_refused_by_name(attack):
    good = noise(20, 0)
    for bad, message in (
        (replace(good, labels=good.labels + 1), "labels from 1 to 4"),
        (replace(good, logits=good.logits / 0.0), "not finite"),
        (replace(good, logits=good.logits[:, :, :1]), "at least 2 classes"),
    ):
        fitted = attack()
        with pytest.raises(InputError, match=f"{attack.name}.*{message}"):
            fit_and_score(fitted, bad)


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a is not ScaledConfidence])
def test_scoring_before_the_fit_is_an_error(attack):
    with pytest.raises(RuntimeError, match="before fit"):
        attack().score(noise(4, 0))


@pytest.mark.parametrize("attack", [ClassConfidence, ModifiedEntropy, QuantileRegression, WorstCaseAttack])
def test_an_overdefended_model_betrays_members_by_low_confidence(attack):
    roles = [noise(60, i, queries=1) for i in range(4)]
    for side in (0, 2):
        labels = roles[side].labels.view(-1, 1, 1)
        lowered = roles[side].logits.scatter_add(2, labels, torch.full((60, 1, 1), -5.0))
        roles[side] = replace(roles[side], logits=lowered)
    fitted = attack()
    fitted.fit(roles[0], roles[1])
    assert auroc(fitted.score(roles[2]), fitted.score(roles[3])) > 0.65  # three null standard deviations
