import math

import pytest
import torch
from scipy.stats import beta, binom

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.epsilon import epsilon_from_counts, epsilon_lower_bound, log_ratio_bound


def randomised_response(seed, epsilon, n):
    """Scores of an epsilon-DP mechanism that reports membership, true with probability e^eps / (1 + e^eps)."""
    generator = torch.Generator().manual_seed(seed)
    truthful = torch.rand(2, n, generator=generator) < 1 / (1 + math.exp(-epsilon))
    return truthful[0].float(), (~truthful[1]).float()


def test_published_looking_rates_certify_what_two_95_per_cent_intervals_say():
    table = [
        (25_000, 2100, 25, 4.00),
        (5000, 250, 5, 2.94),
        (1000, 50, 1, 1.90),
        (1000, 50, 10, 0.71),
        (200, 10, 2, -0.39),
    ]
    for n, hits, alarms, expected in table:
        accused, _ = log_ratio_bound(hits, n, alarms, n)
        assert float(accused) == pytest.approx(expected, abs=0.005)
        by_hand = math.log(beta.ppf(0.025, hits, n - hits + 1) / beta.ppf(0.975, alarms + 1, n - alarms))
        assert float(accused) == pytest.approx(by_hand, abs=1e-9)
    assert epsilon_from_counts(10, 200, 2, 200) == 0.0


@pytest.mark.parametrize(("n", "most"), [(100, 3.28), (500, 4.91), (1000, 5.60), (5000, 7.21), (25_000, 8.82)])
def test_a_perfect_attack_certifies_only_what_its_records_allow(n, most):
    assert epsilon_from_counts(n, n, 0, n) == pytest.approx(most, abs=0.005)


def test_clearing_non_members_counts_as_much_as_accusing_members():
    # an attack that is only ever sure of non-members: the roles of hits and alarms are changed
    assert epsilon_from_counts(1000, 1000, 600, 1000) == pytest.approx(epsilon_from_counts(400, 1000, 0, 1000))
    assert epsilon_from_counts(1000, 1000, 600, 1000) > 4


def test_delta_lowers_the_bound_and_small_counts_certify_nothing():
    bounds = [epsilon_from_counts(50, 1000, 1, 1000, delta) for delta in (0, 1e-5, 1e-3, 0.03, 0.5)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - bounds[1] < 0.001 < bounds[0] - bounds[2]
    expected = math.log((beta.ppf(0.025, 50, 951) - 0.03) / beta.ppf(0.975, 2, 999))
    assert bounds[3] == pytest.approx(expected)
    assert bounds[-1] == 0.0
    assert epsilon_from_counts(0, 10, 0, 10) == 0.0
    assert epsilon_from_counts(50, 1000, 1, 1000, level=0.99) < bounds[0]


@pytest.mark.parametrize("strategy", ["given", "split", "bonferroni"])
@pytest.mark.parametrize("epsilon", [0.0, 1.5])
def test_randomised_response_is_bounded_by_its_epsilon(strategy, epsilon):
    runs, above, total = 120, 0, 0.0
    cut = 0.5 if strategy == "given" else None
    for seed in range(runs):
        found = epsilon_lower_bound(*randomised_response(seed, epsilon, 400), cut, strategy, seed=seed)
        above += found.value > epsilon
        total += found.value
    assert above <= binom.ppf(0.999, runs, 0.05)
    assert total / runs >= 0.6 * epsilon  # and it is not trivially low


def test_a_cut_chosen_on_the_scored_records_overstates_and_is_refused():
    generator = torch.Generator().manual_seed(0)
    member, nonmember = torch.randn(100, generator=generator) + 1.5, torch.randn(100, generator=generator)
    cuts = torch.cat([member, nonmember]).tolist()
    best = max((epsilon_lower_bound(member, nonmember, cut, "scored_records") for cut in cuts), key=lambda m: m.value)
    assert not best.valid
    assert "chosen on the scored records" in best.reason
    assert (best.low, best.high) == (None, None)
    assert best.value > 1.2 * epsilon_lower_bound(member, nonmember, strategy="bonferroni").value > 0


@pytest.mark.parametrize("strategy", ["split", "bonferroni"])
def test_choosing_the_cut_keeps_the_confidence(strategy):
    # Laplace mechanism at epsilon 1: every cut in the upper half has the full ratio, so that there is much to choose from
    generator, above, runs = torch.Generator().manual_seed(0), 0, 150
    for seed in range(runs):
        uniform = torch.rand(2, 400, generator=generator, dtype=torch.float64) - 0.5
        member, nonmember = -uniform.sign() * torch.log1p(-2 * uniform.abs())
        above += epsilon_lower_bound(member + 1, nonmember, strategy=strategy, seed=seed).value > 1
    assert above <= binom.ppf(0.999, runs, 0.05)


def test_correcting_for_all_cuts_costs_what_alpha_over_the_non_members_costs():
    apart = torch.arange(200.0) + 200, torch.arange(200.0)
    found = epsilon_lower_bound(*apart, strategy="bonferroni")
    assert found.value == pytest.approx(epsilon_from_counts(200, 200, 0, 200, level=1 - 0.05 / 200))
    assert found.low == found.value
    assert found.high is None
    assert found.value < epsilon_lower_bound(*apart, 200).value


def test_the_bounds_of_all_attacks_on_one_model_hold_together():
    # eighteen attacks on a mechanism that is (3, 0)-differentially private: how often is one bound above 3?
    together = {1: 0, 18: 0}
    for seed in range(40):
        draws = [randomised_response(1000 * seed + k, 3.0, 400) for k in range(18)]
        for tests in together:
            together[tests] += any(epsilon_lower_bound(*each, 0.5, tests=tests).value > 3 for each in draws)
    assert together[1] > 10
    assert together[18] <= 5  # more has a probability of 1 % at the level of 95 %


@pytest.mark.parametrize("strategy", ["given", "split", "bonferroni"])
def test_several_tests_divide_alpha(strategy):
    apart, cut = (torch.arange(200.0) + 1000, torch.arange(200.0)), 500 if strategy == "given" else None
    n = 100 if strategy == "split" else 200
    alpha = 0.05 / 18 / (200 if strategy == "bonferroni" else 1)
    found = epsilon_lower_bound(*apart, cut, strategy, tests=18)
    assert found.value == pytest.approx(epsilon_from_counts(n, n, 0, n, level=1 - alpha))
    with pytest.raises(InputError, match="not of 0"):
        epsilon_lower_bound(*apart, cut, strategy, tests=0)


def test_halves_depend_on_the_seed_and_not_on_the_order_of_records():
    generator = torch.Generator().manual_seed(1)
    member, nonmember = torch.randn(300, generator=generator) + 2, torch.randn(300, generator=generator)
    found = epsilon_lower_bound(member, nonmember, strategy="split")
    again = epsilon_lower_bound(member.flip(0), nonmember[torch.randperm(300)], strategy="split")
    assert found == again
    assert found != epsilon_lower_bound(member, nonmember, strategy="split", seed=1)
    assert 0 < found.value < epsilon_from_counts(300, 300, 0, 300)


def test_constant_scores_certify_nothing():
    constant = torch.ones(500), torch.ones(700)
    for strategy, cut in (("given", 1.0), ("given", 2.0), ("split", None), ("bonferroni", None)):
        assert epsilon_lower_bound(*constant, cut, strategy).value == 0.0


def test_a_missing_superfluous_or_impossible_choice_is_refused():
    member, nonmember = torch.tensor([1.0, 2.0]), torch.tensor([0.0])
    with pytest.raises(InputError, match="needs a threshold"):
        epsilon_lower_bound(member, nonmember)
    with pytest.raises(InputError, match="chooses its own"):
        epsilon_lower_bound(member, nonmember, 0.5, "split")
    with pytest.raises(InputError, match="2 and 1"):
        epsilon_lower_bound(member, nonmember, strategy="split")
    with pytest.raises(InputError, match="Delta"):
        epsilon_lower_bound(member, nonmember, 0.5, delta=1.0)
    with pytest.raises(InputError, match="NaN"):
        epsilon_lower_bound(member, torch.tensor([torch.nan]), 0.5)
