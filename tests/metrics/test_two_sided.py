import math

import pytest
import torch

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.two_sided import null_two_sided_auroc, two_sided
from lightning_privacy.metrics.membership import auroc, null_auroc_sd


def noise(seed, n):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_members_on_both_sides_are_found_only_by_distance():
    member, nonmember, fit = 3 * noise(0, 400), noise(1, 400), noise(2, 401)
    assert auroc(member, nonmember) == pytest.approx(0.5, abs=0.06)
    assert auroc(two_sided(member, fit), two_sided(nonmember, fit)) > 0.75
    shifted = noise(3, 400) + 1
    assert auroc(shifted, nonmember) > auroc(two_sided(shifted, fit), two_sided(nonmember, fit)) + 0.1


def test_a_centre_from_other_records_keeps_noise_at_one_half_and_the_larger_side_does_not():
    runs, fit = 400, noise(999, 101)
    pairs = [(noise(2 * i, 40), noise(2 * i + 1, 80)) for i in range(runs)]
    slack = 4 * null_auroc_sd(40, 80) / math.sqrt(runs)
    distances = [auroc(two_sided(m, fit), two_sided(n, fit)) for m, n in pairs]
    assert sum(distances) / runs == pytest.approx(0.5, abs=slack)
    larger = [max(a, 1 - a) for a in (auroc(m, n) for m, n in pairs)]
    assert sum(larger) / runs == pytest.approx(null_two_sided_auroc(40, 80), abs=slack)
    assert null_two_sided_auroc(40, 80) > 0.5 + 2 * slack


def test_the_null_of_the_largest_of_several_is_that_of_normal_draws():
    assert null_two_sided_auroc(40, 80) == pytest.approx(0.5 + null_auroc_sd(40, 80) * math.sqrt(2 / math.pi), abs=1e-6)
    draws = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0)).abs().amax(1).mean()
    assert null_two_sided_auroc(40, 80, 5) == pytest.approx(0.5 + null_auroc_sd(40, 80) * float(draws), abs=1e-3)


def test_a_centre_that_is_no_number_is_refused():
    for fit in (torch.empty(0), torch.tensor([torch.nan]), torch.tensor([torch.inf])):
        with pytest.raises(InputError, match="centre"):
            two_sided(torch.zeros(2), fit)
    with pytest.raises(InputError, match="0 members"):
        null_two_sided_auroc(0, 5)
