import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.bootstrap import record_replicates
from lightning_privacy.metrics.functional.roc import OperatingPoints, operating_points
from lightning_privacy.metrics.membership import (
    auroc,
    balanced_accuracy,
    fit_threshold,
    membership_metrics,
    null_auroc_sd,
    paired_difference,
    pool_over_seeds,
    roc_curve,
    tpr_at_fpr,
)

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25).map(torch.tensor)


def normal(seed, shift=0.0, members=40, nonmembers=80):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, generator=generator) + shift, torch.randn(nonmembers, generator=generator)


def sklearn_labels(member, nonmember):
    return np.r_[np.ones(len(member)), np.zeros(len(nonmember))], torch.cat([member, nonmember]).numpy()


@given(scores, scores)
@settings(max_examples=60, deadline=None)
def test_auroc_equals_sklearn_with_ties(member, nonmember):
    assert auroc(member, nonmember) == pytest.approx(roc_auc_score(*sklearn_labels(member, nonmember)), abs=1e-12)


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_tpr_at_fpr_is_the_best_row_of_sklearns_curve(member, nonmember, fpr):
    x, y, _ = sklearn_roc_curve(*sklearn_labels(member, nonmember), drop_intermediate=False)
    assert tpr_at_fpr(member, nonmember, fpr) == pytest.approx(y[x <= fpr + 1e-12].max(), abs=1e-12)


@given(scores, scores, st.floats(-6, 6))
@settings(max_examples=40, deadline=None)
def test_balanced_accuracy_equals_sklearn(member, nonmember, threshold):
    truth, values = sklearn_labels(member, nonmember)
    expected = balanced_accuracy_score(truth, values.astype(float) >= threshold)
    assert balanced_accuracy(member, nonmember, threshold) == pytest.approx(expected, abs=1e-12)


@given(scores, scores)
@settings(max_examples=40, deadline=None)
def test_monotone_transforms_change_nothing_and_sign_mirrors(member, nonmember):
    def warped(x):
        return torch.exp(x.double() / 2) + x.double()

    assert auroc(warped(member), warped(nonmember)) == auroc(member, nonmember)
    assert tpr_at_fpr(warped(member), warped(nonmember), 0.1) == tpr_at_fpr(member, nonmember, 0.1)
    assert auroc(-member, -nonmember) == pytest.approx(1 - auroc(member, nonmember), abs=1e-12)
    assert auroc(nonmember, member) == pytest.approx(1 - auroc(member, nonmember), abs=1e-12)


@given(scores, scores)
@settings(max_examples=40, deadline=None)
def test_no_threshold_beats_the_fitted_one(member, nonmember):
    best = balanced_accuracy(member, nonmember, fit_threshold(member, nonmember))
    for cut in torch.cat([member, nonmember, torch.tensor([99.0])]).tolist():
        assert best >= balanced_accuracy(member, nonmember, cut) - 1e-12


def test_five_per_cent_of_forty_allows_exactly_two_false_positives():
    nonmember = torch.arange(40.0)
    member = torch.tensor([38.5, 37.5, 36.5])
    assert tpr_at_fpr(member, nonmember, 0.05) == pytest.approx(2 / 3)


def test_infinite_scores_are_ordered_and_nan_is_refused():
    assert auroc(torch.tensor([torch.inf]), torch.tensor([0.0, -torch.inf])) == 1.0
    with pytest.raises(InputError, match="NaN"):
        auroc(torch.tensor([torch.nan]), torch.tensor([0.0]))
    with pytest.raises(InputError, match="0 and 1"):
        auroc(torch.empty(0), torch.tensor([0.0]))


def test_roc_curve_ends_and_thinning():
    member, nonmember = normal(0, 1.0, 3000, 5000)
    points = roc_curve(member, nonmember)
    assert 100 < len(points) <= 200
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    exact = operating_points(member, nonmember)
    vertices = set(
        zip((exact.false_positives[0] / 5000).tolist(), (exact.true_positives[0] / 3000).tolist(), strict=True)
    )
    assert set(points[1:]) <= vertices
    assert (0.0, tpr_at_fpr(member, nonmember, 0.0)) in points
    # evenly spaced in the logarithm: a fair share of the points lies below one per cent
    assert sum(0 < x < 0.01 for x, _ in points) > 30
    few = roc_curve(*normal(0, 1.0, 5, 5))
    area = sum((x1 - x0) * (y1 + y0) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(few))
    assert area == pytest.approx(auroc(*normal(0, 1.0, 5, 5)))


def test_bootstrap_counts_equal_explicit_resampling():
    member, nonmember = normal(1, 0.5, 7, 9)
    counts = (torch.tensor([[2.0, 0, 1, 1, 3, 0, 0]]), torch.tensor([[0.0, 4, 1, 1, 1, 0, 0, 2, 0]]))
    points = operating_points(member, nonmember, *counts)
    again = [x.repeat_interleave(c[0].long()) for x, c in zip((member, nonmember), counts, strict=True)]
    assert float(points.auroc()) == pytest.approx(auroc(*again), abs=1e-12)
    assert float(points.tpr_at_fpr(0.2)) == pytest.approx(tpr_at_fpr(*again, 0.2), abs=1e-12)
    assert float(points.balanced_accuracy(0.1)) == pytest.approx(balanced_accuracy(*again, 0.1), abs=1e-12)


def test_blocks_of_resamples_are_joined(monkeypatch):
    monkeypatch.setattr("lightning_privacy.metrics.functional.bootstrap._BLOCK", 120 * 7)
    (values,) = record_replicates([normal(2)], OperatingPoints.auroc, 50, torch.Generator().manual_seed(0))
    assert values.shape == (50,)


def test_null_spread_is_mann_whitneys():
    assert null_auroc_sd(40, 80) == pytest.approx(0.0561, abs=1e-4)
    spread = torch.tensor([auroc(*normal(seed)) for seed in range(400)]).std()
    assert float(spread) == pytest.approx(null_auroc_sd(40, 80), rel=0.15)
    assert auroc(*normal(3, 0.3)) == pytest.approx(
        mannwhitneyu(*[x.numpy() for x in normal(3, 0.3)]).statistic / 3200, abs=1e-9
    )


def test_interval_covers_the_truth_about_95_times_in_100():
    true = float(torch.special.ndtr(torch.tensor(0.5**0.5)))  # P(N(1,1) > N(0,1))
    inside = 0
    for seed in range(100):
        metric = membership_metrics(*normal(seed, 1.0), bootstrap=300, fprs=(), seed=seed)["auroc"]
        inside += metric.low <= true <= metric.high
    assert 88 <= inside <= 100


def test_metrics_are_named_judged_and_repeatable():
    first = membership_metrics(*normal(5, 1.0), threshold=0.5, bootstrap=200)
    assert list(first) == ["auroc", "tpr_at_fpr_0.05", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001", "balanced_accuracy"]
    assert first == membership_metrics(*normal(5, 1.0), threshold=0.5, bootstrap=200)
    assert first["auroc"].valid
    low_fpr = first["tpr_at_fpr_0.01"]
    assert not low_fpr.valid
    assert "80 non-members" in low_fpr.reason
    assert "1000 needed" in low_fpr.reason
    assert low_fpr.value == tpr_at_fpr(*normal(5, 1.0), 0.01)
    assert membership_metrics(*normal(5, 1.0, 40, 200), bootstrap=0)["tpr_at_fpr_0.05"].valid
    assert membership_metrics(*normal(5, 1.0), bootstrap=0)["auroc"].low is None


def test_pooling_adds_the_spread_of_seeds():
    same = [normal(seed, 1.0) for seed in range(5)]
    apart = [normal(seed, 0.5 * seed) for seed in range(5)]
    narrow, wide = pool_over_seeds(same, bootstrap=500), pool_over_seeds(apart, bootstrap=500)
    assert narrow.value == pytest.approx(sum(auroc(*run) for run in same) / 5)
    assert narrow.low < narrow.value < narrow.high
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    single, records = pool_over_seeds(same[:1], bootstrap=2000), membership_metrics(*same[0])["auroc"]
    assert single.low == pytest.approx(records.low, abs=0.02)
    assert not pool_over_seeds(same, "tpr_at_fpr_0.05", bootstrap=50).valid
    with pytest.raises(InputError, match="accuracy"):
        pool_over_seeds(same, "accuracy")
    with pytest.raises(InputError, match="no run"):
        pool_over_seeds([])


def test_a_paired_difference_sees_what_unpaired_intervals_hide():
    first = [normal(seed, 1.0) for seed in range(3)]
    second = [(member - 0.25, nonmember) for member, nonmember in first]
    paired = paired_difference(first, second, bootstrap=500)
    assert paired.value == pytest.approx(
        sum(auroc(*a) - auroc(*b) for a, b in zip(first, second, strict=True)) / 3, abs=1e-12
    )
    assert paired.low > 0
    assert pool_over_seeds(first, bootstrap=500).low < pool_over_seeds(second, bootstrap=500).high
    nothing = paired_difference(first, first, bootstrap=50)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    with pytest.raises(InputError, match="same records"):
        paired_difference(first, [(m[1:], n) for m, n in first])
    with pytest.raises(InputError, match="same seeds"):
        paired_difference(first, first[1:])
