import math

import pytest
import torch

from lightning_privacy.attacks.membership.lira import LiraOffline, LiraOfflineFixed
from lightning_privacy.attacks.membership.observed import take
from lightning_privacy.attacks.membership.rmia import (
    RmiaOffline,
    RmiaOnline,
    dominated,
    dominated_by_vote,
    log_mean_probability,
    share_of_population,
)
from lightning_privacy.attacks.membership.selection import fit_attack
from lightning_privacy.core.results import MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc, null_auroc_sd, tpr_at_fpr

VARIANTS = (RmiaOnline, RmiaOffline)


def signals(target, shadows, inside):
    """Signals whose scaled confidences are exactly the given ones: of two classes, the other's score is zero."""
    return Signals(
        tuple(f"{i:08x}" for i in range(len(target))),
        logits=torch.stack([target, torch.zeros_like(target)], 2),
        labels=torch.zeros(len(target), dtype=torch.long),
        shadow_confidence=shadows,
        shadow_in=inside,
    )


def halves(n, shadows, g):
    """Each record in one of two consecutive shadows, at random: exactly half of the shadows are OUT."""
    first = torch.rand(n, shadows // 2, generator=g) < 0.5
    return torch.stack([first, ~first], 2).flatten(1)


def classifier_world(n, shadows, seed, member, queries=1, gain=0.4):
    """A classifier that is sure of easy records with or without them, and learns hard ones by heart.

    mu_r ~ N(1.5, 3) without the record; training on it adds gain * softplus(4 - mu_r), much where the record is hard and
    nothing where it is easy. Models vary by a standard deviation that itself differs between records (log-normal, 0.3).
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inside = halves(n, shadows, g)
    mu, sd = 1.5 + 3 * draw(n, 1, 1), (0.3 * draw(n, 1, 1)).exp()
    trained = torch.cat([torch.full((n, 1), member), inside], 1).unsqueeze(2)
    noise = (0.8**0.5 * draw(n, shadows + 1, 1) + 0.2**0.5 * draw(n, shadows + 1, queries)) * sd
    phi = mu + gain * torch.nn.functional.softplus(4 - mu) * trained + noise
    return signals(phi[:, 0], phi[:, 1:], inside)


def shifted_world(n, shadows, seed, member):
    """Training on a record raises its phi by one, whichever record: a normal law of one variance is exact here."""
    g = torch.Generator().manual_seed(seed)
    inside = halves(n, shadows, g)
    trained = torch.cat([torch.full((n, 1), member), inside], 1).unsqueeze(2)
    mu = 3 * torch.randn(n, 1, 1, generator=g, dtype=torch.float64)
    phi = mu + trained + torch.randn(n, shadows + 1, 1, generator=g, dtype=torch.float64)
    return signals(phi[:, 0], phi[:, 1:], inside)


def roles(n, shadows, seed, world=classifier_world, **settings):
    return [world(n, shadows, 4 * seed + i, i % 2 == 0, **settings) for i in range(4)]


def evaluated(attack, four):
    attack.fit(four[0], four[1])
    return attack.score(four[2]), attack.score(four[3])


def slow_count(x, z, a=None, gamma=1.0, references=None, temperature=1.0, vote=False):
    """Pr over z of LR(x, z) > gamma with two loops and plain probabilities; a is None for the online attack."""

    def ratios(given, r):
        target = given.logits[r, :, 0] - given.logits[r, :, 1]
        out = []
        for q in range(given.logits.shape[1]):
            sides = {True: [], False: []}
            for k in range(given.shadow_in.shape[1]):
                side = sides[bool(given.shadow_in[r, k])]
                if references is None or len(side) < references:
                    side.append(1 / (1 + math.exp(-float(given.shadow_confidence[r, k, q]) / temperature)))
            p_out = sum(sides[False]) / len(sides[False])
            if a is None:
                p = (sum(sides[True]) / len(sides[True]) + p_out) / 2
            else:
                p = ((1 + a) * p_out + (1 - a)) / 2
            out.append(1 / (1 + math.exp(-float(target[q]) / temperature)) / p)
        return out

    counts = []
    for r in range(len(x)):
        own, count = ratios(x, r), 0
        for s in range(len(z)):
            theirs = ratios(z, s)
            if vote:
                count += sum(i / j > gamma for i, j in zip(own, theirs, strict=True)) > len(own) / 2
            else:
                count += math.prod(i / j for i, j in zip(own, theirs, strict=True)) ** (1 / len(own)) > gamma
        counts.append(count)
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 2.0},
        {"references": 1},
        {"references": 2, "temperature": 2.0},
        {"queries": "vote"},
        {"queries": "vote", "gamma": 1.1},
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_equal_a_double_loop_over_plain_probabilities(variant, settings):
    z, x = classifier_world(20, 8, 1, False, queries=3), classifier_world(15, 8, 2, True, queries=3)
    attack = variant(**settings)
    attack.fit(z, z)
    plain = dict(settings)
    vote = plain.pop("queries", "mean") == "vote"
    slow = slow_count(x, z, 0.33 if variant is RmiaOffline else None, vote=vote, **plain)
    scores = attack.score(x)
    assert (scores * 21).floor().tolist() == slow
    assert len(set(slow)) > 3
    assert ((scores > 0) & (scores < 1)).all()


def test_the_slope_a_is_that_of_the_formula():
    z, x = classifier_world(20, 4, 3, False), classifier_world(15, 4, 4, True)
    for a in (0, 0.6, 1):
        attack = RmiaOffline(a=a)
        attack.fit(z, z)
        assert (attack.score(x) * 21).floor().tolist() == slow_count(x, z, a)


def test_references_are_the_first_out_shadows_of_each_record():
    phi = torch.tensor([[[9.0], [1.0], [2.0], [9.0]], [[1.0], [9.0], [9.0], [2.0]]], dtype=torch.float64)
    inside = torch.tensor([[True, False, False, False], [False, True, True, False]])
    target = torch.zeros(2, 1, dtype=torch.float64)
    one, two = (RmiaOffline(references=n).log_ratios(signals(target, phi, inside)) for n in (1, 2))
    for got, p_out in ((one, [1.0]), (two, [1.0, 2.0])):
        mean = sum(1 / (1 + math.exp(-p)) for p in p_out) / len(p_out)
        expected = math.log(0.5) - math.log((1.33 * mean + 0.67) / 2)
        assert got.flatten().tolist() == pytest.approx([expected, expected])
    with pytest.raises(InputError, match="0 IN and 3 OUT shadow models .*1 of 2 records .*fewer references"):
        RmiaOffline(references=3).log_ratios(signals(target, phi, inside))


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_counts_are_ordered_by_the_ratio_and_different_counts_never_change_order(variant):
    four = roles(200, 4, 5)
    few = take(four[1], torch.arange(7))
    attack = variant()
    attack.fit(few, few)
    scores, ratio = attack.score(four[2]), attack.log_ratios(four[2]).squeeze(1)
    assert len((scores * 8).floor().unique()) <= 8
    assert len(scores.unique()) == 200
    assert torch.equal(scores.argsort(), ratio.argsort())
    extreme = torch.tensor([-1e300, -700.0, 0.0, 1e-9, 700.0, 1e300], dtype=torch.float64)
    for m in (1, 10_000):
        low, high = (share_of_population(torch.full((6,), c), extreme, m) for c in (m - 1, m))
        assert (low.diff() > 0).sum() >= 4 and low.max() < high.min() and high.max() < 1


def test_a_record_equal_to_one_of_the_population_does_not_dominate_it():
    z = torch.tensor([0.0, 1.0, 1.0, 2.0])
    assert dominated(z, z, 1).tolist() == [0, 1, 1, 3]
    assert dominated_by_vote(z.unsqueeze(1), z.unsqueeze(1), 1).tolist() == [0, 1, 1, 3]


def test_votes_in_blocks_are_those_of_one_block(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(50, 4, generator=g), torch.randn(30, 4, generator=g)
    whole = dominated_by_vote(x, z, 1.5)
    monkeypatch.setattr("lightning_privacy.attacks.membership.rmia._PAIRS", 100)
    assert torch.equal(dominated_by_vote(x, z, 1.5), whole)
    half = torch.tensor([[1.0, 1.0, -1.0, -1.0]])  # half of the queries are no majority
    assert dominated_by_vote(half, torch.zeros(1, 4), 1).tolist() == [0]


def test_probabilities_keep_their_relative_precision_at_both_ends():
    from decimal import Decimal, getcontext

    getcontext().prec = 800
    for values in ((40.0, 45.0, 60.0), (-800.0, -790.0, -810.0), (-700.0, 30.0, 2.0), (0.1, -0.1, 0.0)):
        p = [1 / (1 + Decimal(-v).exp()) for v in values]
        phi = torch.tensor(values, dtype=torch.float64).view(1, 3, 1)
        for a in (None, 0.0, 0.33, 1.0):
            weights = torch.full((1, 3), 1 / 3 if a is None else (1 + a) / 6, dtype=torch.float64)
            certain = 0 if a is None else (1 - a) / 2
            mixed = sum(p) / 3 if a is None else ((1 + Decimal(a)) * sum(p) / 3 + 1 - Decimal(a)) / 2
            got = log_mean_probability(phi, weights, certain).item()
            # Near one, log p is minus the chance of an error: 1e-18 here, far below the float's digit at one.
            assert got == pytest.approx(float(mixed.ln()), rel=1e-12, abs=0)


def test_models_that_are_all_but_certain_still_rank_records():
    phi = torch.full((2, 2, 1), 50.0, dtype=torch.float64)
    target = torch.tensor([[45.0], [55.0]], dtype=torch.float64)
    inside = torch.tensor([[True, False]] * 2)
    given = signals(target, phi, inside)
    attack = RmiaOnline()
    attack.fit(given, given)
    assert (attack.score(given) * 3).floor().tolist() == [0, 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_the_order_of_records_nor_of_shadows_matters(variant):
    fit_m, fit_n, given, _ = roles(40, 8, 6, queries=2)
    g = torch.Generator().manual_seed(0)
    shadows, rows = torch.randperm(8, generator=g), torch.randperm(40, generator=g)

    def shuffled(x):
        x = take(x, rows)
        return signals(x.logits[:, :, 0], x.shadow_confidence[:, shadows], x.shadow_in[:, shadows])

    for queries in ("mean", "vote"):
        plain, other = variant(queries=queries), variant(queries=queries)
        plain.fit(fit_m, fit_n)
        other.fit(shuffled(fit_m), shuffled(fit_n))
        scores = plain.score(given)
        assert torch.allclose(other.score(shuffled(given)), scores[rows], rtol=1e-9)
        alone = torch.cat([plain.score(take(given, torch.tensor([i]))) for i in range(40)])
        assert torch.allclose(alone, scores, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_membership_stays_at_chance(variant):
    found, fits = [], []
    for seed in range(10):
        four = [classifier_world(150, 4, 1000 + 4 * seed + i, False) for i in range(4)]
        fitted = fit_attack(variant(), four[0], four[1], seed)
        found.append(auroc(fitted.score(four[2]), fitted.score(four[3])))
        fits.append(fitted.fit_auroc)
    bound = 3.5 * null_auroc_sd(150, 150) / 10**0.5
    assert abs(sum(found) / 10 - 0.5) < bound
    assert abs(sum(fits) / 10 - 0.5) < 2 * bound


def test_with_two_references_it_beats_offline_lira_where_hard_records_are_learnt_by_heart():
    attacks = (RmiaOffline(references=2), LiraOffline(), LiraOfflineFixed())
    areas, rates = [0.0] * 3, [0.0] * 3
    for seed in range(4):
        four = roles(1500, 4, 20 + seed)
        assert (four[2].shadow_in.sum(1) == 2).all()  # two OUT shadows of every record
        for i, attack in enumerate(attacks):
            scores = evaluated(attack, four)
            areas[i] += auroc(*scores) / 4
            rates[i] += tpr_at_fpr(*scores, 0.01) / 4
    assert areas[0] > max(areas[1:]) + 0.02
    assert rates[0] > max(rates[1:])


def test_it_loses_to_offline_lira_where_training_shifts_every_record_alike():
    four = roles(1500, 4, 8, shifted_world)
    rmia, lira = evaluated(RmiaOffline(references=2), four), evaluated(LiraOfflineFixed(), four)
    assert auroc(*lira) > auroc(*rmia) + 0.03  # a record of p = 0.999 can show only little in p / p(x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_attack_keeps_the_contract_and_is_chosen_on_fit_data(variant):
    four = roles(300, 4, 9, gain=0.8)
    attack = variant()
    assert isinstance(attack, MembershipAttack)
    state = torch.get_rng_state()
    fitted = fit_attack(attack, four[0], four[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert attack.population is None  # the attack that was given is left as it is
    assert fitted.sign == 1 and fitted.converged is True
    assert fitted.fit_auroc > 0.75
    assert auroc(fitted.score(four[2]), fitted.score(four[3])) > 0.75
    assert 0 < fitted.threshold < 1


def test_one_reference_is_enough_and_online_needs_one_of_each_kind():
    four = roles(1000, 2, 10, gain=0.8)
    for variant in VARIANTS:
        assert auroc(*evaluated(variant(), four)) > 0.75
    outside = [signals(x.logits[:, :, 0], x.shadow_confidence, torch.zeros_like(x.shadow_in)) for x in four]
    RmiaOffline().fit(outside[0], outside[1])
    with pytest.raises(InputError, match="`rmia_online` needs 1 IN and 1 OUT .* but 1000 of 1000 records"):
        RmiaOnline().fit(outside[0], outside[1])


def test_what_cannot_be_used_is_named():
    good = classifier_world(10, 4, 11, True)
    two = classifier_world(10, 4, 11, True, queries=2)
    attack = RmiaOffline()
    with pytest.raises(RuntimeError, match="rmia_offline.score was called before fit"):
        attack.score(good)
    with pytest.raises(InputError, match="`rmia_offline` has no population"):
        attack.fit(good, take(good, torch.tensor([], dtype=torch.long)))
    attack.fit(good, good)
    with pytest.raises(InputError, match="fitted on 1 queries a record but is to score 2"):
        attack.score(two)
    with pytest.raises(InputError, match="`rmia_online` reads `logits`"):
        RmiaOnline().fit(Signals(good.record_ids), good)
    diverged = signals(good.logits[:, :, 0], good.shadow_confidence * math.inf, good.shadow_in)
    with pytest.raises(InputError, match="shadow models that are NaN, infinite .* for 10 of 10 records"):
        RmiaOnline().fit(diverged, good)
    for settings in ({"gamma": 0}, {"temperature": math.nan}, {"a": 1.5}, {"references": 0}):
        with pytest.raises(InputError, match="rmia_offline"):
            RmiaOffline(**settings)
    with pytest.raises(Exception, match="vote"):  # by the type check, where it is on
        RmiaOnline(queries="median")
