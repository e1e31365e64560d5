import math

import pytest
import torch

from lightning_privacy.attacks.membership.lira import (
    LiraOffline,
    LiraOfflineFixed,
    LiraOnline,
    LiraOnlineFixed,
    one_sided_exceedance,
)
from lightning_privacy.attacks.membership.observed import take
from lightning_privacy.attacks.membership.selection import fit_attack
from lightning_privacy.attacks.membership.shadow_evidence import ShadowEvidence, moments, shadow_evidence
from lightning_privacy.core.results import MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc, null_auroc_sd

VARIANTS = (LiraOnline, LiraOnlineFixed, LiraOffline, LiraOfflineFixed)


def signals(target, shadows, inside):
    """Signals whose scaled confidences are exactly the given ones: of two classes, the other's score is zero."""
    target, shadows = (torch.as_tensor(x, dtype=torch.float64) for x in (target, shadows))
    return Signals(
        tuple(f"{i:08x}" for i in range(len(target))),
        logits=torch.stack([target, torch.zeros_like(target)], 2),
        labels=torch.zeros(len(target), dtype=torch.long),
        shadow_confidence=shadows,
        shadow_in=torch.as_tensor(inside),
    )


def halves(n, shadows, g):
    """Each record in one of two consecutive shadows, at random."""
    first = torch.rand(n, shadows // 2, generator=g) < 0.5
    return torch.stack([first, ~first], 2).flatten(1)


def gaussian_world(n, shadows, seed, member, d=1.0, s=1.0, spread=2.0, queries=1):
    """phi ~ N(mu_r + d, s) of models trained on record r and N(mu_r, s) of others; mu_r ~ N(0, spread)."""
    g = torch.Generator().manual_seed(seed)
    inside = halves(n, shadows, g)
    mu = spread * torch.randn(n, 1, 1, generator=g, dtype=torch.float64)
    noise = s * torch.randn(n, shadows + 1, queries, generator=g, dtype=torch.float64)
    trained = torch.cat([torch.full((n, 1), member), inside], 1).unsqueeze(2)
    phi = mu + d * trained + noise
    return signals(phi[:, 0], phi[:, 1:], inside)


def roles(n, shadows, seed, **world):
    return [gaussian_world(n, shadows, 4 * seed + i, i % 2 == 0, **world) for i in range(4)]


def evaluated(attack, four):
    attack.fit(four[0], four[1])
    return auroc(attack.score(four[2]), attack.score(four[3]))


def permuted(given, records, shadows):
    out = take(given, records)
    return Signals(
        out.record_ids,
        logits=out.logits,
        labels=out.labels,
        shadow_confidence=out.shadow_confidence[:, shadows],
        shadow_in=out.shadow_in[:, shadows],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_many_shadows_the_auroc_is_that_of_the_optimal_likelihood_ratio(variant):
    d, s, spread = 1.0, 1.0, 2.0
    four = roles(1500, 200, 1, d=d, s=s, spread=spread)
    optimal = 0.5 * math.erfc(-d / (2 * s))  # Phi(d / (s sqrt 2)): both laws have the variance s^2
    threshold = 0.5 * math.erfc(-d / (2 * math.hypot(s, spread)))
    # 2.5 standard deviations of a null AUROC, and what estimating means from 100 shadows costs
    tolerance = 2.5 * null_auroc_sd(1500, 1500) + 0.006
    assert evaluated(variant(), four) == pytest.approx(optimal, abs=tolerance)
    raw = [x.logits[:, 0, 0] for x in four[2:]]
    assert auroc(*raw) == pytest.approx(threshold, abs=tolerance)
    assert optimal > threshold + 0.1


def test_online_score_is_the_log_ratio_of_scipys_normal_densities():
    from scipy.stats import norm

    given = gaussian_world(20, 12, 3, True, queries=3)
    attack = LiraOnline(variance_floor=0)
    attack.fit(given, given)
    phi, inside, target = given.shadow_confidence.numpy(), given.shadow_in.numpy(), given.logits[:, :, 0].numpy()
    expected = []
    for r in range(20):
        i, o = phi[r][inside[r]], phi[r][~inside[r]]
        log_in, log_out = (norm.logpdf(target[r], x.mean(0), x.std(0, ddof=1)) for x in (i, o))
        expected.append((log_in - log_out).sum())
    assert attack.score(given).tolist() == pytest.approx(expected, rel=1e-9)


def test_fixed_variance_equals_a_hand_computation():
    shadows = [[[1.0], [3.0], [5.0], [5.0]], [[0.0], [4.0], [9.0], [8.0]]]
    inside = [[False, False, True, True], [False, False, False, True]]
    given = signals([[6.0], [2.0]], shadows, inside)
    attack = LiraOnlineFixed()
    attack.fit(given, take(given, torch.tensor([], dtype=torch.long)))
    # OUT: record 0 has (1, 3), squares 2; record 1 has (0, 4, 9), mean 13/3, squares 97 - 169/3 = 122/3; 1 + 2 freedoms
    variance_out = (2 + 122 / 3) / 3
    # IN: record 0 has (5, 5), squares 0, one freedom; record 1 has one shadow and none. A variance of zero is floored.
    assert attack.pooled[False].tolist() == pytest.approx([variance_out])
    assert attack.pooled[True].tolist() == [1e-12]
    shadows[0][3] = [7.0]
    given = signals([[6.0], [2.0]], shadows, inside)
    attack.fit(given, given)  # twice the records: the same variances
    assert attack.pooled[True].tolist() == pytest.approx([2.0])
    out = [(6 - 2) ** 2 / variance_out, (2 - 13 / 3) ** 2 / variance_out]
    ins = [(6 - 6) ** 2 / 2, (2 - 8) ** 2 / 2]
    logs = math.log(variance_out) - math.log(2)
    assert attack.score(given).tolist() == pytest.approx([(o - i + logs) / 2 for o, i in zip(out, ins, strict=True)])
    offline = LiraOfflineFixed()
    offline.fit(given, given)
    z = [4 / variance_out**0.5, (2 - 13 / 3) / variance_out**0.5]
    assert offline.score(given).tolist() == pytest.approx(z)


def test_offline_score_orders_as_the_papers_and_does_not_tie_the_surest_records():
    phi = torch.linspace(-30, 300, 500, dtype=torch.float64).unsqueeze(1)
    z = one_sided_exceedance(phi, torch.ones_like(phi), 4 * torch.ones_like(phi))
    papers = torch.special.log_ndtr(z)
    assert (papers.diff() >= 0).all() and (z.diff() > 0).all()
    assert len(papers.unique()) < 0.6 * len(papers)


def test_offline_score_of_non_members_is_standard_normal_for_any_number_of_queries():
    for queries in (1, 5):
        known = gaussian_world(500, 200, 9, False, queries=queries)
        attack = LiraOfflineFixed()
        attack.fit(known, known)
        z = attack.score(gaussian_world(4000, 200, 10, False, queries=queries))
        assert float(z.mean()) == pytest.approx(0, abs=0.06)
        assert float(z.std()) == pytest.approx(1.005, abs=0.04)  # the mean of 100 shadows adds a hundredth


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_the_order_of_records_nor_of_shadows_matters(variant):
    fit_m, fit_n, given, _ = roles(40, 8, 5, queries=2)
    g = torch.Generator().manual_seed(0)
    shadows = torch.randperm(8, generator=g)
    orders = [torch.randperm(40, generator=g) for _ in range(3)]
    for center in ("mean", "median"):
        plain, shuffled = variant(center=center), variant(center=center)
        plain.fit(fit_m, fit_n)
        shuffled.fit(permuted(fit_m, orders[0], shadows), permuted(fit_n, orders[1], shadows))
        got = shuffled.score(permuted(given, orders[2], shadows))
        assert torch.allclose(got, plain.score(given)[orders[2]], rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_records_score_does_not_depend_on_who_is_scored_with_it(variant):
    fit_m, fit_n, given, _ = roles(30, 8, 6)
    attack = variant()
    attack.fit(fit_m, fit_n)
    alone = torch.cat([attack.score(take(given, torch.tensor([i]))) for i in range(30)])
    assert torch.allclose(alone, attack.score(given), rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_membership_stays_at_chance(variant):
    found, fits = [], []
    for seed in range(10):
        four = [gaussian_world(150, 8, 1000 + 4 * seed + i, False) for i in range(4)]
        fitted = fit_attack(variant(), four[0], four[1], seed)
        found.append(auroc(fitted.score(four[2]), fitted.score(four[3])))
        fits.append(fitted.fit_auroc)
    bound = 3.5 * null_auroc_sd(150, 150) / 10**0.5
    assert abs(sum(found) / 10 - 0.5) < bound
    assert abs(sum(fits) / 10 - 0.5) < 2 * bound


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_attack_keeps_the_contract_and_is_chosen_on_fit_data(variant):
    four = roles(300, 8, 7, d=2.0)
    attack = variant()
    assert isinstance(attack, MembershipAttack)
    state = torch.get_rng_state()
    fitted = fit_attack(attack, four[0], four[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not attack.pooled  # the attack that was given is left as it is
    assert fitted.sign == 1 and fitted.converged is True
    assert fitted.fit_auroc > 0.75
    assert auroc(fitted.score(four[2]), fitted.score(four[3])) > 0.75


def test_fixed_variance_is_the_stronger_attack_with_few_shadows():
    four = roles(1000, 4, 8)
    assert evaluated(LiraOnlineFixed(), four) > evaluated(LiraOnline(), four) + 0.02
    assert evaluated(LiraOfflineFixed(), four) > evaluated(LiraOffline(), four) + 0.005
    assert evaluated(LiraOnline(), four) > evaluated(LiraOnline(variance_floor=0), four) + 0.01


def test_only_the_first_so_many_shadows_are_read():
    four = roles(50, 8, 11)
    fewer = [
        Signals(
            x.record_ids,
            logits=x.logits,
            labels=x.labels,
            shadow_confidence=x.shadow_confidence[:, :4],
            shadow_in=x.shadow_in[:, :4],
        )
        for x in four
    ]
    budget, all_of_fewer = LiraOnline(shadows=4), LiraOnline()
    budget.fit(four[0], four[1])
    all_of_fewer.fit(fewer[0], fewer[1])
    assert torch.equal(budget.score(four[2]), all_of_fewer.score(fewer[2]))


def test_one_shadow_of_each_kind_is_enough_for_the_fixed_variants():
    four = roles(2000, 2, 12, d=2.0, spread=4.0)
    for variant in (LiraOnlineFixed, LiraOfflineFixed):
        attack = variant()
        assert evaluated(attack, four) > 0.75
        # The target serves as second model: its difference from one shadow has twice the variance.
        assert float(attack.pooled[False]) == pytest.approx(1, abs=0.15)
    for variant, needed in ((LiraOnline, "2 IN and 2 OUT"), (LiraOffline, "0 IN and 2 OUT")):
        attack = variant()
        attack.fit(four[0], four[1])
        with pytest.raises(InputError, match=f"{needed} shadow models of every record, but 2000 of 2000 .*_fixed"):
            attack.score(four[2])


def test_the_median_of_an_even_number_is_half_way_and_of_none_is_not_used():
    phi = torch.tensor([[[1.0], [2.0], [10.0], [4.0]]], dtype=torch.float64)
    for inside, expected in (([False] * 4, 3.0), ([True, False, False, False], 4.0)):
        evidence = ShadowEvidence(phi[:, 0], phi, torch.tensor([inside]))
        assert moments(evidence, False, "median").centre.item() == expected
    assert moments(ShadowEvidence(phi[:, 0], phi, torch.tensor([[False] * 4])), True, "median").centre.item() == 0


def test_blocks_of_records_give_what_one_block_gives(monkeypatch):
    evidence = shadow_evidence(gaussian_world(50, 6, 13, True, queries=2), "lira_online")
    whole = moments(evidence, True)
    monkeypatch.setattr("lightning_privacy.attacks.membership.shadow_evidence._BLOCK", 7 * 12)
    assert [len(x) for x in evidence.blocks()] == [7] * 7 + [1]
    pieces = moments(evidence, True)
    assert torch.equal(whole.centre, pieces.centre) and torch.equal(whole.squares, pieces.squares)


@pytest.mark.parametrize("variant", VARIANTS)
def test_enormous_but_finite_confidences_give_finite_scores_and_what_would_overflow_is_refused(variant):
    def louder(x, scale):
        return signals(scale * x.logits[:, :, 0], scale * x.shadow_confidence, x.shadow_in)

    fit_m, fit_n, given, _ = roles(20, 8, 14)
    attack = variant()
    attack.fit(louder(fit_m, 1e98), louder(fit_n, 1e98))
    loud = attack.score(louder(given, 1e98))
    attack.fit(fit_m, fit_n)
    assert torch.allclose(loud, attack.score(given))  # all four are free of scale
    with pytest.raises(InputError, match="of the target that are NaN, infinite or beyond 1e.100 for 20 of 20"):
        attack.score(louder(given, 1e160))


def test_what_cannot_be_used_is_named():
    good = gaussian_world(10, 4, 15, True)
    phi = good.shadow_confidence.clone()
    phi[3, 1, 0] = math.nan
    with pytest.raises(InputError, match="shadow models that are NaN, infinite .* for 1 of 10 records"):
        LiraOnline().fit(signals(good.logits[:, :, 0], phi, good.shadow_in), good)
    with pytest.raises(InputError, match="`lira_offline` reads `logits`"):
        LiraOffline().fit(Signals(good.record_ids), good)
    with pytest.raises(InputError, match="needs 5 shadow models and one query, but 4 and 1"):
        LiraOffline(shadows=5).fit(good, good)
    never = signals(good.logits[:, :, 0], good.shadow_confidence, torch.zeros(10, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="no record with an IN shadow"):
        LiraOnlineFixed().fit(never, never)
    mixed = good.shadow_in.clone()
    mixed[:3] = True
    attack = LiraOnline()
    attack.fit(good, good)
    with pytest.raises(InputError, match="3 of 10 records have fewer .*2 IN, 0 OUT.*`lira_online_fixed`"):
        attack.score(signals(good.logits[:, :, 0], good.shadow_confidence, mixed))
    with pytest.raises(RuntimeError, match="lira_online_fixed.score was called before fit"):
        LiraOnlineFixed().score(good)
    with pytest.raises(InputError, match="cannot use 0 shadow models"):
        LiraOnline(shadows=0)
    with pytest.raises(InputError, match="variance floor .* is -1"):
        LiraOnline(variance_floor=-1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_queries_than_those_fitted_on_are_refused(variant):
    one, three = (gaussian_world(20, 8, 17, True, queries=queries) for queries in (1, 3))
    attack = variant()
    attack.fit(one, one)
    with pytest.raises(InputError, match="fitted on 1 queries a record but is to score 3"):
        attack.score(three)
    with pytest.raises(InputError, match="3 queries a member but 1 a non-member"):
        attack.fit(three, one)


def test_the_median_is_an_attack_as_well_and_another_center_is_refused():
    four = roles(200, 8, 16, d=2.0)
    assert evaluated(LiraOnlineFixed(center="median"), four) > 0.75
    with pytest.raises(Exception, match="median"):  # by the type check, where it is on
        LiraOnline(center="mode")
