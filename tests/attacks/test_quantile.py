import pytest
import torch

from lightning_privacy.attacks.membership.confidence import ScaledConfidence
from lightning_privacy.attacks.membership.gaussian_heads import fit_gaussian_heads, ridge_by_leave_one_out
from lightning_privacy.attacks.membership.quantile import QuantileRegression
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc


def test_leave_one_out_predictions_equal_refits():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=g, dtype=torch.float64)
    x -= x.mean(0)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 3 + 0.1 * torch.randn(12, generator=g)
    weights, left_out = ridge_by_leave_one_out(x, y)
    assert weights.tolist() == pytest.approx([1.0, -2.0, 3.0], abs=0.15)
    # with the smallest penalty the ridge is nearly least squares, whose refits are exact
    for i in range(12):
        rest = [j for j in range(12) if j != i]
        design = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], 1)
        refit = torch.linalg.lstsq(design[rest], y[rest].unsqueeze(1)).solution.squeeze(1)
        assert float(left_out[i]) == pytest.approx(float(design[i] @ refit), abs=0.02)


def test_mean_and_spread_are_recovered():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 2, generator=g, dtype=torch.float64)
    y = 2 * x[:, 0] + 1 + torch.exp(0.5 * x[:, 1]) * torch.randn(4000, generator=g)
    heads = fit_gaussian_heads(x, y)
    assert (heads.mean / torch.cat([heads.scale, torch.ones(1, dtype=torch.float64)])).tolist() == pytest.approx(
        [2, 0, 1], abs=0.12
    )
    assert (heads.log_sd / torch.cat([heads.scale, torch.ones(1, dtype=torch.float64)])).tolist() == pytest.approx(
        [0, 0.5, 0], abs=0.12
    )
    z = heads.standardise(x, y)
    assert float(z.std()) == pytest.approx(1, abs=0.05)


def test_noise_is_shrunk_away():
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(30, k, generator=g, dtype=torch.float64) for k in (20, 1))
    x -= x.mean(0)
    weights, _ = ridge_by_leave_one_out(x, y.squeeze(1))
    assert float(weights[:-1].norm()) < 0.5 * float(torch.linalg.lstsq(x, y - y.mean()).solution.norm())


def hard_and_easy(n, member, seed):
    """The first feature decides how sure the model is of anyone; members gain two at a standard deviation of one."""
    g = torch.Generator().manual_seed(seed)
    angle = 3 * torch.rand(n, generator=g)
    phi = 5 * angle.cos() + 2.0 * member + torch.randn(n, generator=g)
    return Signals(
        tuple(map(str, range(n))),
        logits=torch.stack([phi, torch.zeros(n)], 1).unsqueeze(1),
        labels=torch.zeros(n, dtype=torch.long),
        embedding=torch.stack([angle.cos(), angle.sin()], 1) * (1 + torch.rand(n, 1, generator=g)),
    )


def test_difficulty_is_taken_out_by_the_embedding():
    roles = [hard_and_easy(200, i % 2 == 0, i) for i in range(4)]
    attack = QuantileRegression()
    assert attack.fit(roles[0], roles[1])
    plain = auroc(*(ScaledConfidence().score(x) for x in roles[2:]))
    assert plain < 0.75
    assert auroc(attack.score(roles[2]), attack.score(roles[3])) > 0.87  # the ideal is 0.921


def test_false_positive_rates_are_those_of_the_normal_on_unseen_nonmembers():
    attack = QuantileRegression()
    attack.fit(hard_and_easy(50, True, 0), hard_and_easy(400, False, 1))
    rate = float((attack.score(hard_and_easy(4000, False, 2)) > 1.645).double().mean())
    assert rate == pytest.approx(0.05, abs=0.025)
    assert attack.observed_fpr(0.05) == pytest.approx(0.05, abs=0.05)


def test_the_tail_that_is_checked_is_the_one_that_is_scored():
    def skewed(n, seed, shift=0.0):  # a long tail on the low side alone, where the members lie
        g = torch.Generator().manual_seed(seed)
        embedding = torch.randn(n, 4, generator=g)
        phi = shift - torch.randn(n, generator=g).exp()
        return Signals(
            tuple(map(str, range(n))),
            logits=torch.stack([phi, torch.zeros(n)], 1).unsqueeze(1),
            labels=torch.zeros(n, dtype=torch.long),
            embedding=embedding,
        )

    attack = QuantileRegression()
    attack.fit(skewed(200, 0, -3.0), skewed(3000, 1))
    assert attack.sign == -1
    scores = attack.score(skewed(8000, 2))
    for alpha, z in ((0.01, 2.3263), (0.001, 3.0902)):
        assert attack.observed_fpr(alpha) == pytest.approx(float((scores > z).double().mean()), abs=0.01)
    assert attack.observed_fpr(0.001) > 0.01  # the other tail has none


def test_members_only_decide_the_side():
    nonmembers, seen = hard_and_easy(60, False, 0), hard_and_easy(20, False, 9)
    scores = []
    for seed in (1, 2):
        attack = QuantileRegression()
        attack.fit(hard_and_easy(30, True, seed), nonmembers, seed=5)
        scores.append(attack.score(seen))
    assert torch.equal(*scores)


def test_too_few_nonmembers_and_foreign_embeddings_are_refused():
    attack = QuantileRegression()
    with pytest.raises(InputError, match="at least 4"):
        attack.fit(hard_and_easy(10, True, 0), hard_and_easy(3, False, 1))
    attack.fit(hard_and_easy(10, True, 0), hard_and_easy(10, False, 1))
    other = hard_and_easy(5, True, 2)
    with pytest.raises(InputError, match="4 features but is given 3"):
        attack.score(Signals(other.record_ids, logits=other.logits, labels=other.labels, embedding=torch.ones(5, 1)))
    with pytest.raises(InputError, match="calibration_share"):
        QuantileRegression(1.0)
