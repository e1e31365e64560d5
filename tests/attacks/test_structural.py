"""Structural checks against closed forms, brute force and independent libraries; false alarms on real pictures."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits

from lightning_privacy.attacks.structural.canary_guesses import CoinGuesses, guess_coins, strongest_epsilon
from lightning_privacy.attacks.structural.loss_gap import effective_parameters, kolmogorov_smirnov, loss_gap, mean_gap
from lightning_privacy.attacks.structural.near_duplicates import near_duplicates, thumbnails
from lightning_privacy.attacks.structural.proportions import share
from lightning_privacy.attacks.structural.published_outputs import (
    class_disclosure,
    group_sizes,
    output_groups,
    published,
    small_classes,
)
from lightning_privacy.datamodules.orl import read_orl
from lightning_privacy.errors import InputError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_the_largest_gap_of_the_distribution_functions():
    member, heldout = drawn(40), drawn(30, seed=1) + 0.7
    every = torch.cat([member, heldout])
    gap = ((member[None] <= every[:, None]).double().mean(1) - (heldout[None] <= every[:, None]).double().mean(1)).abs()
    distance, p = kolmogorov_smirnov(member, heldout)
    assert distance.value == pytest.approx(float(gap.max()))
    assert p.value == pytest.approx(stats.ks_2samp(member, heldout, method="exact").pvalue)
    slack = math.sqrt(math.log(80) / 80) + math.sqrt(math.log(80) / 60)
    assert distance.high == pytest.approx(min(1, distance.value + slack))


def test_the_distance_of_equal_distributions_is_inside_its_interval():
    covered = 0
    for seed in range(60):
        distance, _ = kolmogorov_smirnov(drawn(50, seed=seed), drawn(50, seed=1000 + seed))
        covered += distance.low == 0
    assert covered >= 57


def test_the_gap_is_that_of_the_means_and_its_interval_that_of_the_normal_law():
    member, heldout = drawn(400), drawn(400, seed=1) + 0.5
    gap = mean_gap(member, heldout)
    assert gap.value == pytest.approx(float(heldout.mean() - member.mean()), abs=1e-6)
    half = 1.96 * math.sqrt(float(member.var() + heldout.var()) / 400)
    assert gap.low == pytest.approx(gap.value - half, abs=0.02)
    assert gap.high == pytest.approx(gap.value + half, abs=0.02)
    assert loss_gap(member, heldout)["mean_gap"] == gap


def test_losses_that_diverged_or_are_alone_are_refused():
    with pytest.raises(InputError, match="not finite"):
        kolmogorov_smirnov(torch.tensor([0.0, math.nan]), torch.zeros(3))
    with pytest.raises(InputError, match="at least two"):
        mean_gap(torch.zeros(1), torch.zeros(3))


def test_a_logistic_regression_uses_as_many_parameters_as_it_has():
    generator = torch.Generator().manual_seed(0)
    n, d, found = 400, 10, []
    for _ in range(30):
        truth = 0.3 * torch.randn(d, 2, generator=generator)

        def draw(m, truth=truth):
            x = torch.randn(m, d, generator=generator)
            return x, torch.multinomial((x @ truth).softmax(1), 1, generator=generator)[:, 0]

        (x, y), (new_x, new_y) = draw(n), draw(4000)
        weights = torch.zeros(d, 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

        def closure(weights=weights, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weights, y)
            loss.backward()
            return loss

        optimizer.step(closure)

        def gap(w, x=x, y=y, new_x=new_x, new_y=new_y):
            old, new = F.cross_entropy(x @ w, y, reduction="none"), F.cross_entropy(new_x @ w, new_y, reduction="none")
            return effective_parameters(mean_gap(old, new, bootstrap=0), n)["effective_parameters"].value

        # The gap of the true weights has mean zero; taking it off leaves the same mean and a tenth of the variance.
        found.append(gap(weights.detach()) - gap(truth))
    mean, error = np.mean(found), np.std(found) / math.sqrt(len(found))
    assert error < 1.5
    assert abs(mean - d) < 3 * error


def test_a_share_has_the_exact_interval():
    for count, n in ((0, 7), (3, 11), (40, 40)):
        reference = stats.binomtest(count, n).proportion_ci(method="exact")
        found = share(count, n)
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert not share(0, 0).valid


def test_unrounded_outputs_are_always_unique_and_published_ones_are_not():
    logits = 0.5 * drawn(500, 2)
    assert len(logits.softmax(1).unique(dim=0)) == 500  # what a rule on whole vectors would flag
    outputs = published(logits)
    sizes = group_sizes(outputs)
    rows = outputs.tolist()
    assert sizes.tolist() == [rows.count(row) for row in rows]
    metrics = output_groups(logits, logits)
    assert metrics["unique_share"].value < 0.05
    assert metrics["smallest_group"].value == float(sizes.min())
    assert metrics["unique_share"] == metrics["heldout_unique_share"]


def test_classes_that_were_never_learned_are_named_and_confidence_alone_names_none():
    confident = 20 * F.one_hot(torch.arange(30) % 3, 3).float()
    metrics, never, zero = class_disclosure(confident)
    assert (never, zero) == ([], [])
    assert metrics["always_zero"].value == 0
    with_absent = torch.cat([confident, torch.full((30, 1), -20.0)], dim=1)
    assert class_disclosure(with_absent)[1:] == ([3], [3])


def test_small_classes_are_counted_in_records():
    metrics, few = small_classes(torch.tensor([0] * 12 + [1] * 3 + [5]), smallest=10)
    assert few == {1: 3, 5: 1}
    assert metrics["small_class_share"].value == 4 / 16
    assert metrics["smallest_class"].value == 1


def test_blocks_find_what_the_whole_matrix_holds():
    a, b = drawn(37, 6), drawn(29, 6, seed=1)
    cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    found = near_duplicates(a, b, 0.8, block=8, top=1000)
    assert found.pairs == int((cosine >= 0.8).sum()) > 0
    assert (found.left, found.right) == (
        int((cosine >= 0.8).any(1).sum()),
        int((cosine >= 0.8).any(0).sum()),
    )
    assert {(i, j) for i, j, _ in found.top} == set(map(tuple, (cosine >= 0.8).nonzero().tolist()))
    assert [p[2] for p in found.top] == sorted((p[2] for p in found.top), reverse=True)


def test_too_many_pairs_and_impossible_thresholds_are_refused():
    with pytest.raises(InputError, match="most_pairs"):
        near_duplicates(torch.eye(4), torch.eye(4), most_pairs=15)
    with pytest.raises(InputError, match="threshold"):
        near_duplicates(torch.eye(4), torch.eye(4), 1.5)


def test_flat_pictures_are_like_no_other():
    flat = torch.full((2, 1, 8, 8), 0.3)
    assert near_duplicates(thumbnails(flat), thumbnails(flat)).pairs == 0


def pairs_of_distinct(images, threshold=0.99):
    thumb, mirrored = thumbnails(images), thumbnails(images.flip(-1))
    found = near_duplicates(thumb, thumb, threshold, mirrored=mirrored, top=10_000)
    return {(i, j) for i, j, _ in found.top if i < j}


def orl():
    pictures = [read_orl(person, shot).copy() for person in range(1, 41) for shot in range(1, 11)]
    faces = torch.stack([torch.from_numpy(p).float() / 255 for p in pictures])[:, None, 10:102]
    return F.interpolate(faces, (64, 64), mode="bilinear", antialias=True, align_corners=False)


def test_the_default_threshold_raises_one_false_alarm_on_digits_and_one_on_faces():
    digits = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]
    assert len(pairs_of_distinct(digits)) <= 2
    same = pairs_of_distinct(orl())
    assert len(same) <= 2
    assert all(i // 10 == j // 10 for i, j in same)


def test_copies_of_faces_are_found():
    faces = orl()[::10]
    noise = 0.05 * drawn(*faces.shape)
    half = F.interpolate(faces, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
    copies = {
        "noise": (faces + noise).clamp(0, 1),
        "contrast": 0.8 * faces + 0.1,
        "gamma": faces**0.8,
        "half size": F.interpolate(half, (64, 64), mode="bilinear", align_corners=False),
        "mirror": faces.flip(-1),
    }
    own, mirrored = thumbnails(faces), thumbnails(faces.flip(-1))
    for name, copy in copies.items():
        found = near_duplicates(own, thumbnails(copy), mirrored=mirrored)
        assert found.left >= 38, name


def test_guesses_abstain_from_the_middle():
    coins = torch.tensor([True, True, False, True, False, False])
    scores = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert guess_coins(scores, coins, 1.0) == CoinGuesses(4, 6, 6)
    assert guess_coins(scores, coins, 0.4) == CoinGuesses(2, 2, 6)


def test_a_bound_needs_guesses_and_a_test():
    with pytest.raises(InputError, match="0 and 0"):
        strongest_epsilon([])
    with pytest.raises(InputError, match="1 and 0"):
        strongest_epsilon([CoinGuesses(4, 6, 6)], tests=0)


def test_ties_are_broken_without_the_coins():
    coins = torch.arange(400) < 200
    right = [guess_coins(torch.zeros(400), coins, 1.0, seed).correct for seed in range(40)]
    assert abs(np.mean(right) - 200) < 4 * 10 / math.sqrt(40)


def test_a_memoriser_shows_epsilon_and_guessing_shows_none_in_95_percent_of_seeds():
    shown = 0
    for seed in range(300):
        coins = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.5
        every = [guess_coins(drawn(200, seed=10_000 + seed), coins, each, seed) for each in (0.1, 0.5, 1.0)]
        shown += strongest_epsilon(every) > 0
        if seed == 0:
            perfect = [guess_coins(coins.float(), coins, each) for each in (0.1, 0.5, 1.0)]
            assert strongest_epsilon(perfect) > 2.5
    assert shown <= stats.binom.ppf(0.999, 300, 0.05)
