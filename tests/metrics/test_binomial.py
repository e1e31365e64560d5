import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
@settings(max_examples=80, deadline=None)
def test_two_sided_ends_are_scipys_exact_ones(counts, level):
    expected = binomtest(*counts).proportion_ci(level, "exact")
    low, high = clopper_pearson(*counts, level)
    assert float(low) == pytest.approx(expected.low, abs=1e-12)
    assert float(high) == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize(("side", "alternative"), [("lower", "greater"), ("upper", "less")])
def test_one_sided_ends_leave_the_whole_tail_on_one_side(side, alternative):
    for k in (0, 1, 17, 39, 40):
        expected = binomtest(k, 40, alternative=alternative).proportion_ci(0.95, "exact")
        assert tuple(map(float, clopper_pearson(k, 40, 0.95, side))) == pytest.approx(tuple(expected), abs=1e-12)


def test_many_counts_at_once_equal_the_beta_quantiles():
    k, n = torch.tensor([[0, 3], [9, 10]]), torch.tensor([[10, 12], [9, 20]])
    low, high = clopper_pearson(k, n)
    assert low.shape == high.shape == (2, 2)
    assert low.dtype == torch.float64
    expected = np.nan_to_num(beta.ppf(0.025, k.numpy(), (n - k + 1).numpy()), nan=0.0)
    np.testing.assert_allclose(low.numpy(), expected, atol=1e-12)
    assert float(low[0, 0]) == 0.0
    assert float(high[1, 0]) == 1.0
    one_total = clopper_pearson(torch.tensor([0.0, 5.0]), 10)
    assert float(one_total[1][0]) == pytest.approx(1 - 0.025**0.1)


def test_coverage_is_never_below_the_level():
    n = 30
    low, high = clopper_pearson(torch.arange(n + 1), n)
    for p in np.linspace(0.01, 0.99, 197):
        inside = (low.numpy() <= p) & (p <= high.numpy())
        assert binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= 0.95 - 1e-12


@pytest.mark.parametrize(
    ("k", "n", "level", "said"),
    [(3, 2, 0.95, "whole"), (-1, 2, 0.95, "whole"), (0, 0, 0.95, "trial"), (1, 2, 1.0, "1.0")],
)
def test_what_is_no_count_or_level_is_refused(k, n, level, said):
    with pytest.raises(InputError, match=said):
        clopper_pearson(k, n, level)
    with pytest.raises(InputError, match="whole"):
        clopper_pearson(torch.tensor([0.5]), 2)
