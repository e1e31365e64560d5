import copy
from dataclasses import replace

import pytest
import torch

from lightning_privacy.attacks.membership.averaged_loss import AveragedLoss
from lightning_privacy.attacks.membership.calibrated_loss import CalibratedLoss
from lightning_privacy.attacks.membership.h_prime import HPrime
from lightning_privacy.attacks.membership.observed import take
from lightning_privacy.attacks.membership.registry import MEMBERSHIP_ATTACKS, build_attack, register_attack
from lightning_privacy.attacks.membership.ridge import PENALTIES, fit_ridge_logistic
from lightning_privacy.attacks.membership.selection import fit_attack, strongest
from lightning_privacy.attacks.membership.trained_calibrated import TrainedCalibrated
from lightning_privacy.core.results import MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc, membership_metrics, null_auroc_sd

TIMESTEPS = torch.linspace(50, 950, 10).long().repeat_interleave(2)
FEATURES = 16


def records(n, seed, leak=0.0, only=None):
    """Errors as a fine-tuned diffusion model gives them: hard pictures, hard steps, noisy draws; members lower."""
    g = torch.Generator().manual_seed(seed)
    difficulty = 0.3 * torch.randn(n, 1, generator=g)
    shared = 0.2 * torch.randn(n, len(TIMESTEPS), generator=g)
    reference = torch.exp(difficulty + shared - TIMESTEPS / 1000)
    gain = leak * (torch.ones(1, len(TIMESTEPS)) if only is None else only(TIMESTEPS).float().unsqueeze(0))
    ratio = 0.05 * torch.randn(n, len(TIMESTEPS), generator=g) + 0.02 * torch.randn(n, 1, generator=g)
    loss = reference * torch.exp(ratio - gain)
    maps = loss.unsqueeze(2) * torch.exp(0.3 * torch.randn(n, len(TIMESTEPS), FEATURES, generator=g))
    ids = tuple(f"{seed:04d}{i:04d}" for i in range(n))
    return Signals(ids, loss=loss, reference_loss=reference, timesteps=TIMESTEPS, error_map=maps)


def four_roles(seed, leak=0.0, only=None):
    fit_m, fit_n = records(30, 4 * seed, leak, only), records(40, 4 * seed + 1)
    return fit_m, fit_n, records(30, 4 * seed + 2, leak, only), records(40, 4 * seed + 3)


def classifier_fields(n, seed, lift):
    """What a classifier and eight shadow models say: records differ in difficulty, training on one lifts its class."""
    g = torch.Generator().manual_seed(10_000 + seed)
    labels = torch.randint(3, (n,), generator=g)
    difficulty = torch.randn(n, 1, generator=g)

    def confidence(inside):
        return difficulty + lift * inside + 0.5 * torch.randn(n, inside.shape[1], generator=g)

    inside = torch.stack([torch.randperm(8, generator=g) < 4 for _ in range(n)])
    logits = torch.randn(n, 2, 3, generator=g)
    own = logits.logsumexp(2) + confidence(torch.full((n, 2), lift > 0).float())
    logits.scatter_(2, labels.view(n, 1, 1).expand(n, 2, 1), own.unsqueeze(2))
    shadows = confidence(inside.float()).unsqueeze(2).expand(n, 8, 2).double()
    return {
        "logits": logits,
        "labels": labels,
        "embedding": torch.randn(n, 6, generator=g),
        "shadow_confidence": shadows + 0.1 * torch.randn(n, 8, 2, generator=g),
        "shadow_in": inside,
        "boundary_distance": torch.rand(n, generator=g) + lift,
    }


def every_signal(seed):
    """The four roles with the fields of every kind of model."""
    lifts = (3.0, 0.0, 3.0, 0.0)
    return [
        replace(signals, **classifier_fields(len(signals), 4 * seed + k, lifts[k]))
        for k, signals in enumerate(four_roles(seed, 0.8))
    ]


def evaluate(attack, roles, seed=0):
    fitted = fit_attack(attack, roles[0], roles[1], seed)
    return fitted, auroc(fitted.score(roles[2]), fitted.score(roles[3]))


def use_without_signals(attack, signals):
    attack.fit(signals, signals)
    attack.score(signals)


@pytest.mark.parametrize("name", sorted(MEMBERSHIP_ATTACKS))
def test_every_attack_keeps_the_contract(name):
    attack = build_attack(name)
    assert isinstance(attack, MembershipAttack)
    assert attack.name == name
    assert attack.access
    fit_m, fit_n, eval_m, eval_n = every_signal(0)
    state = torch.get_rng_state()
    outcomes = []
    for _ in range(2):
        fresh = build_attack(name)
        with torch.inference_mode():  # as inside trainer.validate
            converged = fresh.fit(fit_m, fit_n, seed=3)
        assert isinstance(converged, bool)
        outcomes.append(fresh.score(eval_m))
    assert outcomes[0].shape == (30,)
    assert auroc(outcomes[0], fresh.score(eval_n)) > 0.5 + null_auroc_sd(30, 40)
    assert torch.equal(*outcomes)
    assert torch.equal(torch.get_rng_state(), state)
    needed = Signals(fit_m.record_ids, timesteps=TIMESTEPS)
    with pytest.raises(InputError, match=name):
        use_without_signals(build_attack(name), needed)


def test_loss_attacks_in_closed_form():
    signals = Signals(
        ("a", "b"), loss=torch.tensor([[1.0, 3.0], [2.0, 4.0]]), reference_loss=torch.tensor([[2.0, 6.0], [2.0, 4.0]])
    )
    assert AveragedLoss().score(signals).tolist() == [-2.0, -3.0]
    assert CalibratedLoss().score(signals).tolist() == pytest.approx([0.6931471805599453, 0.0])


def test_planted_leak_is_found_and_calibration_is_the_stronger_signal():
    roles = four_roles(1, leak=0.06)
    names = ("averaged_loss", "calibrated_loss", "h_prime", "trained_calibrated")
    found = {name: evaluate(build_attack(name), roles) for name in names}
    assert found["calibrated_loss"][1] > 0.9
    assert found["trained_calibrated"][1] > 0.85
    assert found["calibrated_loss"][1] > found["averaged_loss"][1] + 0.2
    assert strongest({name: fitted for name, (fitted, _) in found.items()}) in {"calibrated_loss", "trained_calibrated"}


def test_h_prime_finds_a_leak_in_the_maps_and_moves_its_weights():
    roles = four_roles(2, leak=0.8)
    before = copy.deepcopy(roles)
    attack = HPrime()
    assert attack.fit(roles[0], roles[1], seed=0)
    trained = torch.cat([p.flatten() for p in attack.network.parameters()])
    untrained = HPrime(max_epochs=1, patience=1, learning_rate=1e-12)
    untrained.fit(roles[0], roles[1], seed=0)
    start = torch.cat([p.flatten() for p in untrained.network.parameters()])
    assert float((trained - start).abs().max()) > 1e-3
    assert auroc(attack.score(roles[2]), attack.score(roles[3])) > 0.9
    for seen, kept in zip(roles, before, strict=True):
        assert torch.equal(seen.error_map, kept.error_map)


def test_h_prime_cut_short_says_so():
    fit_m, fit_n, *_ = four_roles(2, leak=0.8)
    assert HPrime(max_epochs=2).fit(fit_m, fit_n) is False


def test_trained_attack_finds_a_leak_that_hides_in_one_timestep_range_or_has_the_other_sign():
    roles = four_roles(3, leak=0.08, only=lambda t: t < 300)
    _, calibrated = evaluate(CalibratedLoss(), roles)
    _, trained = evaluate(TrainedCalibrated(), roles)
    assert trained > 0.85
    assert trained > calibrated + 0.05
    cancelled = four_roles(4, leak=0.08, only=lambda t: (t < 500).float() - (t >= 500).float())
    assert evaluate(TrainedCalibrated(), cancelled)[1] > 0.9
    assert evaluate(CalibratedLoss(), cancelled)[1] < 0.7


def test_sign_is_chosen_on_fit_data():
    roles = four_roles(5, leak=-0.06)  # an over-defended model: members' losses raised
    fitted, on_holdout = evaluate(CalibratedLoss(), roles)
    assert fitted.sign == -1
    assert fitted.fit_auroc > 0.8
    assert on_holdout > 0.8
    # one-sided: fit data that says the opposite of the evaluation records gives less than a half
    flipped = (roles[0], roles[1], *four_roles(5, leak=0.06)[2:])
    assert evaluate(CalibratedLoss(), flipped)[1] < 0.3
    cut = membership_metrics(fitted.score(roles[2]), fitted.score(roles[3]), fitted.threshold, bootstrap=0)
    assert cut["balanced_accuracy"].value > 0.75


@pytest.mark.parametrize("name", ["averaged_loss", "calibrated_loss", "trained_calibrated"])
def test_noise_stays_at_chance_over_twenty_seeds(name):
    outcomes, fits = [], []
    for seed in range(20):
        fitted, on_holdout = evaluate(build_attack(name), four_roles(100 + seed), seed)
        outcomes.append(on_holdout)
        fits.append(fitted.fit_auroc)
    bound = 3.5 * null_auroc_sd(30, 40) / 20**0.5
    assert abs(sum(outcomes) / 20 - 0.5) < bound
    # The fit AUROC, too: a sign or a penalty chosen on the records it is judged on would lift it.
    assert abs(sum(fits) / 20 - 0.5) < 2 * bound


def test_h_prime_stays_at_chance_on_noise():
    attack = HPrime(hidden=(64, 32), patience=5)
    outcomes = []
    for seed in range(20):
        roles = four_roles(200 + seed)
        attack.fit(roles[0], roles[1], seed)
        outcomes.append(auroc(attack.score(roles[2]), attack.score(roles[3])))
    assert abs(sum(outcomes) / 20 - 0.5) < 3.5 * null_auroc_sd(30, 40) / 20**0.5


def test_an_attack_works_without_timesteps():
    fit_m, fit_n = (
        Signals(x.record_ids, loss=x.loss[:, :1], reference_loss=x.reference_loss[:, :1])
        for x in four_roles(6, leak=0.2)[:2]
    )
    attack = TrainedCalibrated()
    attack.fit(fit_m, fit_n)
    assert auroc(attack.score(fit_m), attack.score(fit_n)) > 0.8


def test_ridge_equals_sklearn_at_its_penalty():
    from sklearn.linear_model import LogisticRegression

    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=g, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(60, generator=g) > 0.4).long()
    rule = fit_ridge_logistic(x, y, torch.Generator().manual_seed(0))
    assert rule.converged
    assert rule.penalty in PENALTIES
    # ours: class weights summing to one; sklearn: balanced weights summing to n, penalty on the sum
    z = ((x - rule.mean) / rule.scale).numpy()
    theirs = LogisticRegression(C=1 / (rule.penalty * 60), class_weight="balanced", tol=1e-10, max_iter=1000)
    theirs.fit(z, y.numpy())
    assert rule.weights.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-4)
    assert rule.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_take_keeps_what_belongs_to_draws():
    signals = take(records(5, 0), torch.tensor([3, 1]))
    assert signals.record_ids == ("00000003", "00000001")
    assert signals.loss.shape == (2, len(TIMESTEPS))
    assert torch.equal(signals.timesteps, TIMESTEPS)
    # as many records as draws: timesteps must not be taken for records
    square = Signals(("a", "b"), loss=torch.eye(2), timesteps=torch.tensor([5, 7]))
    assert take(square, torch.tensor([1])).timesteps.tolist() == [5, 7]


def test_registry_names_what_there_is():
    with pytest.raises(InputError, match=", ".join(sorted(MEMBERSHIP_ATTACKS))):
        build_attack("secmi")

    class Nothing:
        name = "nothing"

    class Thief(AveragedLoss):
        pass

    with pytest.raises(InputError, match="lacks requires, access, fit, score"):
        register_attack(Nothing)
    with pytest.raises(InputError, match="belongs to AveragedLoss"):
        register_attack(Thief)


def test_too_few_records_are_refused():
    few = records(3, 0)
    with pytest.raises(InputError, match="at least 4"):
        fit_attack(AveragedLoss(), few, records(10, 1))


def test_noise_gives_one_half_on_fit_data_also_where_the_sign_is_free_and_scores_are_far_from_zero():
    """Pooling out-of-fold scores whose signs depend on the other folds gave .546 here."""
    found = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        members, others = (
            Signals(tuple(f"{side}{i}" for i in range(10)), loss=10 + torch.randn(10, 1, generator=generator))
            for side in "mo"
        )
        found.append(fit_attack(AveragedLoss(), members, others, seed).fit_auroc)
    every = torch.tensor(found)
    assert abs(float(every.mean()) - 0.5) < 3 * float(every.std()) / len(found) ** 0.5 < 0.04
