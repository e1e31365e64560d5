import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, mannwhitneyu
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.bootstrap import record_replicates
from lightning_privacy.metrics.functional.delong import delong_interval
from lightning_privacy.metrics.functional.epsilon import epsilon_lower_bound
from lightning_privacy.metrics.functional.low_fpr import ppv_at_priors, tpr_at_fpr_interval, tpr_interval_on_roc
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
    assert list(first) == [
        "auroc",
        "tpr_at_fpr_0.05",
        "tpr_at_fpr_0.01",
        "tpr_at_fpr_0.001",
        "balanced_accuracy",
        "advantage",
        "epsilon_lower",
    ]
    assert first == membership_metrics(*normal(5, 1.0), threshold=0.5, bootstrap=200)
    assert first["auroc"].valid
    low_fpr = first["tpr_at_fpr_0.01"]
    assert not low_fpr.valid
    assert "80 non-members" in low_fpr.reason
    assert "1000 needed" in low_fpr.reason
    assert low_fpr.value == tpr_at_fpr(*normal(5, 1.0), 0.01)
    assert membership_metrics(*normal(5, 1.0, 40, 200), bootstrap=0)["tpr_at_fpr_0.05"].valid
    assert membership_metrics(*normal(5, 1.0), bootstrap=0)["auroc"].low is None


def test_the_worked_example_of_six_records():
    y, p = torch.tensor([0, 0, 0, 1, 1, 1]).bool(), torch.tensor([0.1, 0.6, 0.2, 0.45, 0.9, 0.99])
    member, nonmember = p[y], p[~y]
    found = membership_metrics(member, nonmember, threshold=0.5, bootstrap=0)
    assert found["auroc"].value == pytest.approx(8 / 9)
    assert found["advantage"].value == pytest.approx(2 / 3 - 1 / 3)
    assert found["balanced_accuracy"].value == pytest.approx((2 / 3 + 2 / 3) / 2)
    points = operating_points(member, nonmember)
    above = int((points.thresholds >= 0.5).sum()) - 1
    assert float(points.true_positives[0, above]) / 3 == pytest.approx(2 / 3)
    assert float(points.false_positives[0, above]) / 3 == pytest.approx(1 / 3)
    rates = {fpr: tpr_at_fpr(member, nonmember, fpr) for fpr in (0, 0.1, 0.4, 1)}
    assert rates == pytest.approx({0: 2 / 3, 0.1: 2 / 3, 0.4: 1, 1: 1})


def test_the_interval_of_a_tpr_is_that_of_the_hits_at_the_fewest_and_the_most_alarms_of_the_populations_cut():
    member, nonmember = normal(6, 1.5, 300, 2000)
    ranked = nonmember.sort(descending=True).values
    for fpr, found in zip(
        (0.05, 0.01), list(membership_metrics(member, nonmember, bootstrap=0).values())[1:3], strict=True
    ):
        fewest, most = int(binom.ppf(0.0125, 2000, fpr)), int(binom.isf(0.0125, 2000, fpr))
        # k alarms at most: the highest score that must not be accused is the non-member of rank k, counted from 0
        hits, few, many = (int((member > ranked[k]).sum()) for k in (int(fpr * 2000), fewest - 1, most))
        assert few < hits < many
        assert found.value == hits / 300
        assert found.low == pytest.approx(beta.ppf(0.0125, few, 301 - few), abs=1e-9)
        assert found.high == pytest.approx(beta.ppf(0.9875, many + 1, 300 - many), abs=1e-9)
        assert found.valid
        fixed = binomtest(hits, 300).proportion_ci(0.95, "exact")
        assert found.low < fixed.low < fixed.high < found.high
        low, high = tpr_interval_on_roc(roc_curve(member, nonmember), 300, 2000, fpr)
        assert found.low - 0.03 < low <= found.low < found.high <= high < found.high + 0.06


def to_tenths(x):
    return (10 * x).round() / 10


@pytest.mark.parametrize(
    ("scores_of", "members", "nonmembers", "fpr", "true"),
    [
        (lambda x: x, 200, 200, 0.05, 0.4424),  # P(N(1.5, 1) > 1.6449)
        (lambda x: x, 1000, 1000, 0.01, 0.2043),
        (to_tenths, 1000, 1000, 0.05, 0.4404),  # the cut 1.7: P(N(0, 1) >= 1.65) = .0495, P(N(1.5, 1) >= 1.65)
    ],
    ids=["5 %", "1 %", "with ties"],
)
def test_the_interval_of_a_tpr_covers_that_of_the_population_in_95_of_100_draws(
    scores_of, members, nonmembers, fpr, true
):
    runs, inside, at_fixed_cut = 200, 0, 0
    for seed in range(runs):
        points = operating_points(*map(scores_of, normal(seed, 1.5, members, nonmembers)))
        found = tpr_at_fpr_interval(points, fpr)
        inside += found.low <= true <= found.high
        fixed = binomtest(round(found.value * members), members).proportion_ci(0.95, "exact")
        at_fixed_cut += fixed.low <= true <= fixed.high
    assert inside >= 0.95 * runs - 6  # two standard deviations
    assert at_fixed_cut < 0.8 * runs  # what taking the cut for known is worth


def test_the_interval_of_a_tpr_stays_within_its_bounds_for_any_rate_and_few_records():
    points = operating_points(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))
    for fpr in (1e-6, 0.05, 0.4, 0.5, 0.999):
        found = tpr_at_fpr_interval(points, fpr)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert not found.valid
    assert tpr_at_fpr_interval(points, 0.05).low == 0


def test_ppv_is_bayes_rule_at_one_per_cent_alarms_and_its_interval_covers():
    member, nonmember = normal(6, 1.5, 300, 2000)
    found = membership_metrics(member, nonmember, bootstrap=0)
    tpr = found["tpr_at_fpr_0.01"].value
    for prior in (0.01, 0.1, 0.5):
        metric = found[f"ppv_at_prior_{prior:g}"]
        assert metric.value == pytest.approx(prior * tpr / (prior * tpr + (1 - prior) * 0.01))
        assert 0 < metric.low < metric.value < metric.high < 1
    assert not [name for name in membership_metrics(*normal(6, 1.5, 300, 999), bootstrap=0) if "ppv" in name]
    inside, runs = 0, 200
    for seed in range(runs):
        # members above t with probability (1 - t)^(1/2), non-members with 1 - t: the true PPV of the chosen cut is known
        generator = torch.Generator().manual_seed(seed)
        members = 1 - torch.rand(300, generator=generator, dtype=torch.float64) ** 2
        nonmembers = torch.rand(1000, generator=generator, dtype=torch.float64)
        cut = nonmembers.sort(descending=True).values[10]
        true_tpr, true_fpr = float((1 - cut).sqrt()), float(1 - cut)
        (metric,) = ppv_at_priors(operating_points(members, nonmembers), priors=(0.1,))
        inside += metric.low <= 0.1 * true_tpr / (0.1 * true_tpr + 0.9 * true_fpr) <= metric.high
    assert inside >= 0.95 * runs - 7  # two standard deviations; Bonferroni and exact counts make it rather wide
    with pytest.raises(InputError, match="share of members"):
        ppv_at_priors(operating_points(members, nonmembers), priors=(0.0,))


def test_an_attack_that_accuses_nobody_has_no_ppv():
    nobody = membership_metrics(torch.zeros(100), torch.ones(1000), bootstrap=0)["ppv_at_prior_0.5"]
    assert not nobody.valid
    assert "accuses nobody" in nobody.reason


def test_advantage_is_taken_at_the_fitted_threshold_and_epsilon_is_its_bound():
    member, nonmember = normal(7, 1.0, 400, 400)
    found = membership_metrics(member, nonmember, threshold=1.0, bootstrap=200)
    tpr, fpr = float((member >= 1).double().mean()), float((nonmember >= 1).double().mean())
    advantage, accuracy = found["advantage"], found["balanced_accuracy"]
    assert advantage.value == pytest.approx(tpr - fpr)
    assert (advantage.low, advantage.high) == pytest.approx((2 * accuracy.low - 1, 2 * accuracy.high - 1))
    assert found["epsilon_lower"] == epsilon_lower_bound(member, nonmember, 1.0)
    assert found["epsilon_lower"].value > 0.3
    eighteen = membership_metrics(member, nonmember, threshold=1.0, bootstrap=0, delta=1e-5, tests=18)
    assert eighteen["epsilon_lower"] == epsilon_lower_bound(member, nonmember, 1.0, delta=1e-5, tests=18)
    assert eighteen["epsilon_lower"].value < found["epsilon_lower"].value
    stricter = membership_metrics(member, nonmember, threshold=1.0, bootstrap=0, delta=0.1)
    assert stricter["epsilon_lower"].value < found["epsilon_lower"].value
    without = membership_metrics(member, nonmember, bootstrap=0)
    assert not {"advantage", "balanced_accuracy", "epsilon_lower"} & set(without)


def test_the_interval_of_the_auroc_is_chosen():
    member, nonmember = normal(8, 1.0)
    bootstrapped = membership_metrics(member, nonmember)["auroc"]
    found = membership_metrics(member, nonmember, bootstrap=0, auroc_interval="delong")
    assert found["auroc"] == delong_interval(member, nonmember)
    assert next(iter(found)) == "auroc"
    assert (found["auroc"].low, found["auroc"].high) == pytest.approx((bootstrapped.low, bootstrapped.high), abs=0.03)


@pytest.mark.parametrize("interval", ["bootstrap", "delong"])
def test_constant_scores_are_chance_whatever_the_order(interval):
    found = membership_metrics(torch.ones(50), torch.ones(1000), 1.0, bootstrap=50, auroc_interval=interval)
    values = {name: metric.value for name, metric in found.items()}
    assert values.pop("auroc") == values.pop("balanced_accuracy") == 0.5
    assert set(values.values()) == {0.0}
    # it clears no model: a saturated score looks the same
    assert {name for name, metric in found.items() if metric.valid} == {"epsilon_lower"}
    assert all("all scores are equal" in metric.reason for name, metric in found.items() if name != "epsilon_lower")
    assert found["auroc"].low == pytest.approx(0.025 ** (1 / 50) / 2) and found["auroc"].high > 0.5
    assert found["advantage"].low < -0.05 and found["advantage"].high > 0
    # two kinds of scores, every order of the records: one set of numbers
    member, nonmember = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    orders = [
        membership_metrics(member[list(a)], nonmember[list(b)], 1.0, bootstrap=0, auroc_interval=interval)
        for a in itertools.permutations(range(3))
        for b in itertools.permutations(range(4))
    ]
    assert all(order == orders[0] for order in orders)


def test_perfect_separation_is_no_certainty():
    member, nonmember = torch.arange(30.0) + 100, torch.arange(80.0)
    found = membership_metrics(member, nonmember, threshold=99.5, bootstrap=50)
    assert found["auroc"] == delong_interval(member, nonmember)
    assert (found["auroc"].low, found["auroc"].high) == pytest.approx((0.025 ** (1 / 30), 1.0))
    # each rate two-sided at 97.5 %
    low = 0.0125 ** (1 / 30) - (1 - 0.0125 ** (1 / 80))
    assert (found["advantage"].low, found["advantage"].high) == pytest.approx((low, 1.0))
    assert (found["balanced_accuracy"].low, found["balanced_accuracy"].high) == pytest.approx(((1 + low) / 2, 1.0))
    assert all(found[name].valid for name in ("auroc", "advantage", "balanced_accuracy"))
    reversed_ = membership_metrics(-member, -nonmember, threshold=-99.5, bootstrap=50)
    assert (reversed_["auroc"].low, reversed_["auroc"].high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    assert membership_metrics(member, nonmember, threshold=99.5, bootstrap=0)["auroc"].low is None
    pooled = pool_over_seeds([(member, nonmember)] * 2, bootstrap=50)
    assert (pooled.low, pooled.high) == pytest.approx((0.0125 ** (1 / 30), 1.0))
    assert pooled.valid
    constant = pool_over_seeds([(torch.ones(30), torch.ones(80))] * 2, bootstrap=50)
    assert not constant.valid and constant.low < 0.5 < constant.high


def test_a_rate_of_zero_is_supported_by_no_number_of_records():
    found = pool_over_seeds([normal(0)], "tpr_at_fpr_0", bootstrap=0)
    assert not found.valid
    assert "no number can" in found.reason


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
