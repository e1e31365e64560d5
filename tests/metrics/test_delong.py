import itertools
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, rankdata
from sklearn.metrics import roc_auc_score

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.delong import delong_covariance, delong_interval, one_way_interval, placements

tied = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12).map(torch.tensor)


def by_definition(first, second):
    """Covariance of two AUROCs from the kernel, term by term."""

    def kernel(member, nonmember):
        return np.array([[(x > y) + 0.5 * (x == y) for y in nonmember] for x in member], dtype=float)

    one, two = kernel(*first), kernel(*second)
    m, n = one.shape
    return float(
        np.cov(one.mean(1), two.mean(1), ddof=1)[0, 1] / m + np.cov(one.mean(0), two.mean(0), ddof=1)[0, 1] / n
    )


def draw(seed, members=40, nonmembers=80, shift=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, generator=generator) + shift, torch.randn(nonmembers, generator=generator)


@given(tied, tied, st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_covariance_equals_the_definition_in_ties(member, nonmember, seed):
    generator = torch.Generator().manual_seed(seed)
    other = [x[torch.randperm(len(x), generator=generator)] for x in (member, nonmember)]
    area, covariance = delong_covariance(torch.stack([member, other[0]]), torch.stack([nonmember, other[1]]))
    truth = np.r_[np.ones(len(member)), np.zeros(len(nonmember))]
    assert float(area[0]) == pytest.approx(roc_auc_score(truth, torch.cat([member, nonmember])), abs=1e-12)
    models = [(member.tolist(), nonmember.tolist()), tuple(x.tolist() for x in other)]
    for (i, first), (j, second) in itertools.product(enumerate(models), repeat=2):
        assert float(covariance[i, j]) == pytest.approx(by_definition(first, second), abs=1e-12)


@given(tied, tied)
@settings(max_examples=40, deadline=None)
def test_placements_are_differences_of_midranks(member, nonmember):
    pooled = rankdata(torch.cat([member, nonmember]).numpy())[: len(member)]
    expected = (pooled - rankdata(member.numpy())) / len(nonmember)
    np.testing.assert_allclose(placements(member.unsqueeze(0), nonmember.unsqueeze(0))[0], expected, atol=1e-12)


def test_the_variance_is_that_of_repeated_draws():
    areas = torch.tensor([float(delong_covariance(*[x.unsqueeze(0) for x in draw(seed)])[0]) for seed in range(600)])
    estimates = [float(delong_covariance(*[x.unsqueeze(0) for x in draw(seed)])[1]) for seed in range(100)]
    assert float(areas.var()) == pytest.approx(np.mean(estimates), rel=0.15)


def test_a_difference_of_related_models_is_known_better_than_unrelated_variances_say():
    member, nonmember = draw(0)
    noise = draw(1, shift=0.0)
    _, c = delong_covariance(
        torch.stack([member, member + 0.1 * noise[0]]), torch.stack([nonmember, nonmember + 0.1 * noise[1]])
    )
    assert float(c[0, 0] + c[1, 1] - 2 * c[0, 1]) < 0.05 * float(c[0, 0] + c[1, 1])


@pytest.mark.parametrize(("members", "nonmembers", "shift"), [(40, 80, 1.0), (20, 20, 3.0)])
def test_the_interval_covers_the_truth_and_stays_inside(members, nonmembers, shift):
    truth, runs, inside = NormalDist().cdf(shift / 2**0.5), 300, 0
    for seed in range(runs):
        found = delong_interval(*draw(seed, members, nonmembers, shift))
        assert 0 <= found.low <= found.value <= found.high <= 1
        inside += found.low <= truth <= found.high
    assert inside >= binom.ppf(0.001, runs, 0.95)


def test_scores_apart_give_an_exact_interval_and_say_so():
    apart = torch.arange(30.0) + 100, torch.arange(20.0)
    found = delong_interval(*apart)
    assert (found.value, found.high, found.valid) == (1.0, 1.0, True)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    assert "above" in found.reason and "20 disjoint pairs" in found.reason
    mirrored = delong_interval(*apart[::-1])
    assert (mirrored.value, mirrored.low) == (0.0, 0.0)
    assert mirrored.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert "below" in mirrored.reason


def test_constant_scores_are_half_with_an_honest_interval():
    found = delong_interval(torch.zeros(30), torch.zeros(20))
    assert found.value == 0.5
    assert found.low == pytest.approx(0.025 ** (1 / 20) / 2)
    assert found.low + found.high == pytest.approx(1.0)
    assert "level with" in found.reason


def test_too_few_records_are_refused_or_said():
    single = delong_interval(torch.tensor([1.0]), torch.tensor([0.0, 2.0]))
    assert (single.value, single.low, single.high) == (0.5, None, None)
    assert "two members" in single.reason
    above = delong_interval(torch.tensor([3.0]), torch.tensor([0.0, 2.0]))
    assert (above.value, above.low, above.high) == pytest.approx((1.0, 0.025, 1.0))
    assert one_way_interval(torch.tensor([1.0]), torch.tensor([0.0, 2.0])) is None
    with pytest.raises(InputError, match="1 and 2"):
        delong_covariance(torch.zeros(1, 1), torch.zeros(1, 2))
    with pytest.raises(InputError, match="NaN"):
        delong_covariance(torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 2))


def test_infinite_scores_are_ordered():
    member, nonmember = torch.tensor([torch.inf, 0.0, 1.0]), torch.tensor([-torch.inf, 0.5])
    finite = torch.tensor([9.0, 0.0, 1.0]), torch.tensor([-9.0, 0.5])
    assert delong_interval(member, nonmember) == delong_interval(*finite)
