import pytest
import torch

from lightning_privacy.attacks.membership.confidence import ScaledConfidence
from lightning_privacy.attacks.membership.population import Population, share_below, share_below_others
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc


def two_classes(phi, labels=None, classes=2):
    labels = torch.zeros(len(phi), dtype=torch.long) if labels is None else labels
    logits = torch.zeros(len(phi), 1, classes, dtype=torch.float64)
    logits[torch.arange(len(phi)), 0, labels] = phi.double()
    return Signals(tuple(map(str, range(len(phi)))), logits=logits, labels=labels)


def test_share_is_the_rank_inside_and_its_mean_at_ties():
    population = torch.tensor([3.0, 1.0, 2.0, 2.0])
    shares = share_below(torch.tensor([1.0, 2.0, 3.0, 2.5]), population)
    assert shares.tolist() == pytest.approx([1 / 5, 2.5 / 5, 4 / 5, 3.25 / 5])


@pytest.mark.parametrize("population", [torch.tensor([4.0]), torch.full((9,), 4.0), torch.linspace(-3, 4, 50)])
def test_share_increases_strictly_far_beyond_the_population(population):
    values = torch.tensor([-1e6, -1e3, -20.0, -3.5, 4.5, 20.0, 1e3, 1e6], dtype=torch.float64)
    shares = share_below(values, population)
    assert bool((shares.diff() > 0).all())
    assert bool(((shares > 0) & (shares < 1)).all())


def test_one_minus_the_score_is_a_p_value():
    g = torch.Generator().manual_seed(0)
    attack = Population()
    population, fresh = (two_classes(torch.randn(n, generator=g)) for n in (400, 4000))
    attack.fit(fresh, population)
    rates = [(attack.score(fresh) > 1 - alpha).double().mean() for alpha in (0.5, 0.1, 0.05)]
    # sd of the rate from 400 population records: sqrt(.05 * .95 / 400) = .011
    assert [float(x) for x in rates] == pytest.approx([0.5, 0.1, 0.05], abs=0.05)


@pytest.mark.parametrize("values", [torch.tensor([2.0, 5.0, 1.0, 4.5, -3.0]), torch.tensor([1.0, 1, 0, 2, 2, 2, 7])])
def test_the_share_among_the_others_is_that_of_leaving_each_out(values):
    each = [share_below(values[i : i + 1], values[torch.arange(len(values)) != i]) for i in range(len(values))]
    assert share_below_others(values).tolist() == pytest.approx(torch.cat(each).tolist(), abs=1e-12)
    assert share_below_others(torch.ones(4)).tolist() == pytest.approx([0.5] * 4)
    assert share_below_others(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.25, 0.75])


def ten_classes(n, seed, spread):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=g)
    return two_classes(torch.randn(n, generator=g) + spread * labels, labels, classes=10)


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("per_class", [True, False])
def test_a_cut_at_95_per_cent_has_a_false_positive_rate_of_about_5(per_class, spread):
    rates, runs = torch.zeros(2, dtype=torch.float64), 20
    for seed in range(runs):
        attack = Population(per_class)
        attack.fit(ten_classes(5, 0, spread), ten_classes(300, seed, spread))
        scores = attack.score(ten_classes(3000, 1000 + seed, spread))
        rates += torch.stack([(scores > cut).double().mean() for cut in (0.95, 0.9)]) / runs
    # sd of the mean rate: sqrt(.05 * .95 / 300 / 20) = .003
    assert rates.tolist() == pytest.approx([0.05, 0.1], abs=0.01)


def test_classes_change_the_order_by_the_average_alone():
    g = torch.Generator().manual_seed(3)
    attack, seen = Population(), two_classes(2 * torch.randn(40, generator=g))
    attack.fit(seen, two_classes(torch.randn(30, generator=g)))
    # in a single class the average of both shares is either
    assert torch.equal(attack.score(seen).argsort(), ScaledConfidence().score(seen).argsort())
    attack.fit(seen, two_classes(torch.ones(1)))
    assert bool(attack.score(seen).isfinite().all())


def test_without_classes_the_order_is_that_of_the_loss():
    g = torch.Generator().manual_seed(1)
    attack, seen = Population(per_class=False), two_classes(3 * torch.randn(100, generator=g))
    attack.fit(seen, two_classes(torch.randn(30, generator=g)))
    assert torch.equal(attack.score(seen).argsort(), ScaledConfidence().score(seen).argsort())


def test_a_record_is_compared_with_its_own_class():
    g = torch.Generator().manual_seed(2)
    labels = torch.randint(2, (300,), generator=g)
    sides = [two_classes(torch.randn(300, generator=g) + 8 * labels + shift, labels) for shift in (0, 0, 2)]
    outcomes = []
    for per_class in (True, False):
        attack = Population(per_class)
        attack.fit(sides[2], sides[0])
        outcomes.append(auroc(attack.score(sides[2]), attack.score(sides[1])))
    assert outcomes[0] > 0.88 > 0.75 > outcomes[1]


def test_a_class_that_the_population_lacks_is_compared_with_all():
    attack = Population()
    attack.fit(two_classes(torch.zeros(1)), two_classes(torch.tensor([0.0, 1.0, 2.0])))
    assert attack.score(two_classes(torch.tensor([1.0]), torch.tensor([1]))).tolist() == pytest.approx([0.5])


def test_no_population_is_an_error():
    with pytest.raises(InputError, match="no non-member"):
        Population().fit(two_classes(torch.zeros(2)), two_classes(torch.zeros(0)))
    with pytest.raises(InputError, match="must be positive"):
        Population(prior_records=0)
