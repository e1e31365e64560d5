import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import binom, binomtest

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.one_run import one_run_counts, one_run_epsilon, one_run_p_value


@pytest.mark.parametrize(
    ("guesses", "right", "expected"),
    [(100, 90, 1.63), (100, 99, 3.02), (200, 200, 4.19), (500, 500, 5.11), (1000, 600, 0.30)],
)
def test_pure_privacy_is_a_binomial_tail(guesses, right, expected):
    found = one_run_epsilon(guesses, guesses, right)
    assert found == pytest.approx(expected, abs=0.005)
    low = binomtest(right, guesses, alternative="greater").proportion_ci(0.95, "exact").low
    assert found == pytest.approx(math.log(low / (1 - low)), abs=1e-9)
    assert one_run_p_value(guesses, guesses, right, found) == pytest.approx(0.05, abs=1e-9)


def test_the_numbers_printed_in_the_paper():
    assert one_run_epsilon(1000, 100, 75, delta=1e-4) == pytest.approx(0.673, abs=1e-3)
    assert one_run_epsilon(100_000, 1510, 1439, delta=1e-5) == pytest.approx(2.675, abs=1e-3)


@given(st.integers(1, 30), st.floats(0, 4), st.sampled_from([1e-4, 1e-3, 1e-2]), st.data())
@settings(max_examples=40, deadline=None)
def test_the_correction_is_the_best_way_to_spend_the_mean_failures(guesses, epsilon, delta, data):
    # maximise over distributions p of the number F of given-away guesses: sum_i p_i (f(v - i) - f(v)), mean <= 2 m delta
    right, canaries = data.draw(st.integers(1, guesses)), 30
    tail = binom.sf(np.arange(right, -1, -1) - 1, guesses, 1 / (1 + math.exp(-epsilon)))
    gain = tail[1:] - tail[0]
    spent = linprog(-gain, A_ub=[np.arange(1, right + 1)], b_ub=[2 * canaries * delta])
    expected = min(1.0, tail[0] - spent.fun)
    found = one_run_p_value(canaries, guesses, right, epsilon, delta)
    assert found == pytest.approx(expected, abs=1e-6)  # the solver keeps 1e-7


@given(st.integers(2, 200), st.data())
@settings(max_examples=25, deadline=None)
def test_bounds_fall_with_delta_and_rise_with_right_guesses(guesses, data):
    right = data.draw(st.integers(1, guesses))
    bounds = [one_run_epsilon(guesses, guesses, right, delta) for delta in (0, 1e-12, 1e-6, 1e-4, 1e-3, 1e-2)]
    assert all(a >= b for a, b in pairwise(bounds))
    assert bounds[1] == pytest.approx(bounds[0], abs=1e-6)
    if right < guesses:
        assert one_run_epsilon(guesses, guesses, right + 1, 1e-4) >= bounds[3]
    assert one_run_epsilon(2 * guesses, guesses, right, 1e-4) <= bounds[3]


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 5e-3, 2e-2])
def test_the_p_value_rises_with_epsilon_as_long_as_it_is_small(delta):
    # the bisection needs it, also where 2 m delta is above one
    for right in range(260, 501, 20):
        values = np.array([one_run_p_value(1000, 500, right, e, delta) for e in np.linspace(0, 8, 60)])
        small = values[: np.flatnonzero(values < 0.3).max(initial=-1) + 1]
        assert (np.diff(small) > -1e-12).all()


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 0.01)])
def test_randomised_response_is_bounded_by_its_epsilon(epsilon, delta):
    # epsilon-DP randomised response which, with probability delta, gives the bit away: (epsilon, delta)-DP
    generator, canaries, runs = torch.Generator().manual_seed(7), 200, 400
    honest = torch.rand(runs, canaries, generator=generator) < 1 / (1 + math.exp(-epsilon))
    leaked = torch.rand(runs, canaries, generator=generator) < delta
    right = (honest | leaked).sum(1).tolist()
    bounds = [one_run_epsilon(canaries, canaries, v, delta) for v in right]
    assert sum(bound > epsilon for bound in bounds) <= binom.ppf(0.999, runs, 0.05)
    if not delta:
        assert sum(bound > epsilon for bound in bounds) >= binom.ppf(0.001, runs, 0.01)  # no room given away
        assert np.mean(bounds) >= 0.7 * epsilon


def test_publishing_all_with_probability_delta_is_forgiven_at_that_delta_alone():
    # coin flips, but with probability delta every bit: (0, delta)-DP
    canaries, delta, runs = 100, 0.2, 400
    generator = torch.Generator().manual_seed(3)
    right = (torch.rand(runs, canaries, generator=generator) < 0.5).sum(1)
    right[torch.rand(runs, generator=generator) < delta] = canaries
    wrong = [sum(one_run_epsilon(canaries, canaries, v, d) > 0 for v in right.tolist()) for d in (delta, 0)]
    assert wrong[0] <= binom.ppf(0.999, runs, 0.05) < wrong[1]


def test_guesses_are_the_ends_of_the_ranking_and_ties_at_an_edge_abstain():
    scores = torch.tensor([5.0, 4.0, 4.0, 3.0, 2.0, 1.0])
    included = torch.tensor([True, False, True, True, False, True])
    assert one_run_counts(scores, included, 3, 2) == (6, 5, 3)
    assert one_run_counts(scores, included, 2, 0) == (6, 1, 1)  # the second place is a tie: only the first is guessed
    assert one_run_counts(scores, included, 6, 0) == (6, 6, 4)
    assert one_run_counts(scores, included, 0, 6) == (6, 6, 2)
    order = torch.randperm(6)
    assert one_run_counts(scores[order], included[order], 2, 1) == one_run_counts(scores, included, 2, 1)
    assert one_run_counts(torch.zeros(6), included, 3, 2) == (6, 0, 0)
    assert one_run_epsilon(6, 0, 0) == 0.0


def test_impossible_audits_are_refused():
    for wrong in ((10, 11, 5), (10, 5, 6), (0, 0, 0), (10, 5, -1)):
        with pytest.raises(InputError, match="right <= guesses <= canaries"):
            one_run_epsilon(*wrong)
    with pytest.raises(InputError, match="Delta"):
        one_run_epsilon(10, 10, 5, delta=-0.1)
    with pytest.raises(InputError, match="level"):
        one_run_epsilon(10, 10, 9, level=0.3)
    with pytest.raises(InputError, match="Epsilon"):
        one_run_p_value(10, 10, 9, -1)
    with pytest.raises(InputError, match="cannot guess 3"):
        one_run_counts(torch.zeros(4), torch.ones(4, dtype=torch.bool), 3, 2)
    with pytest.raises(InputError, match="NaN"):
        one_run_counts(torch.tensor([torch.nan]), torch.tensor([True]), 1, 0)
