import inspect

import pytest
import torch

from lightning_privacy.attacks.inversion.selection import Tried, fit_error_law, select_strongest
from lightning_privacy.attacks.inversion.target import InversionTarget
from lightning_privacy.errors import InputError

SHAPE = (1, 4, 4)
TARGET = InversionTarget(lambda x: x.flatten(1), "split", SHAPE)


def pictures(n, seed):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def off_by(x, size, seed):
    """Reconstructions whose error has a given size, one number or one a picture."""
    g = torch.Generator().manual_seed(seed)
    return x + torch.as_tensor(size).reshape(-1, 1, 1, 1) * torch.randn(x.shape, generator=g)


def choose(own, victims, tried, target=TARGET):
    return select_strongest(target, own, target.observe(own), target.observe(victims), tried, seed=0)


def test_an_attack_that_is_better_everywhere_is_chosen():
    own, victims = pictures(40, 0), pictures(20, 1)
    tried = {
        "bad": Tried(off_by(own, 0.3, 2), off_by(victims, 0.3, 3)),
        "good": Tried(off_by(own, 0.05, 4), off_by(victims, 0.05, 5)),
    }
    found = choose(own, victims, tried)
    assert found.best_single == "good" and set(found.chosen) == {"good"}
    assert torch.equal(found.pictures, tried["good"].victims)
    assert found.own_error["good"] < found.own_error["bad"]


def test_attacks_that_fail_on_different_victims_are_told_apart():
    own, victims = pictures(60, 0), pictures(40, 1)
    odd = lambda n: torch.arange(n) % 2 == 1  # noqa: E731
    size = lambda n, bad: torch.where(odd(n) == bad, 0.3, 0.02)  # noqa: E731
    tried = {
        name: Tried(off_by(own, size(60, bad), 2 + bad), off_by(victims, size(40, bad), 4 + bad))
        for name, bad in (("fails_when_even", False), ("fails_when_odd", True))
    }
    found = choose(own, victims, tried)
    assert found.per_victim
    assert found.chosen == tuple("fails_when_even" if k % 2 else "fails_when_odd" for k in range(40))
    single = (tried[found.best_single].victims - victims).square().mean()
    assert (found.pictures - victims).square().mean() < single / 10


def test_an_attack_that_fits_what_leaked_and_misses_the_picture_is_not_believed():
    # The tap sees two pixels of sixteen: a search fits them exactly and invents the rest.
    target = InversionTarget(lambda x: x.flatten(1)[:, :2], "features", SHAPE)
    own, victims = pictures(40, 0), pictures(20, 1)
    fitted = []
    for x, seed in ((own, 2), (victims, 3)):
        invented = off_by(x, 0.5, seed)
        invented[:, 0, 0, :2] = x[:, 0, 0, :2]
        fitted.append(invented)
    tried = {"overfitted": Tried(*fitted), "plain": Tried(off_by(own, 0.2, 4), off_by(victims, 0.2, 5))}
    found = choose(own, victims, tried, target)
    assert set(found.chosen) == {"plain"}


def test_with_few_own_pictures_all_victims_get_the_best_single_attack():
    own, victims = pictures(6, 0), pictures(4, 1)
    tried = {"a": Tried(off_by(own, 0.1, 2), off_by(victims, 9.0, 3)), "b": Tried(off_by(own, 0.2, 4), victims)}
    found = choose(own, victims, tried)
    assert not found.per_victim and set(found.chosen) == {"a"}


def test_the_victims_pictures_are_no_argument():
    names = set(inspect.signature(select_strongest).parameters)
    assert names == {"target", "own_pictures", "own_observed", "observed", "tried", "seed"}
    own, victims = pictures(40, 0), pictures(20, 1)
    tried = {
        "a": Tried(off_by(own, 0.1, 2), off_by(victims, 0.1, 3)),
        "b": Tried(off_by(own, 0.11, 4), off_by(victims, 0.1, 5)),
    }
    first = choose(own, victims, tried)
    assert first.chosen == choose(own, victims, tried).chosen


def test_the_law_is_level_where_mismatch_says_nothing():
    g = torch.Generator().manual_seed(0)
    t, error = torch.rand(200, generator=g), torch.rand(200, generator=g) + 0.5
    law = fit_error_law(t, error)
    assert law.slope < 0.05
    torch.testing.assert_close(law(t).mean(), error.double().mean(), rtol=0.02, atol=0)
    assert fit_error_law(torch.ones(5), torch.rand(5, generator=g)).slope == 0


def test_the_law_does_not_reach_beyond_what_was_seen():
    t = torch.linspace(-3, 0, 30).exp()
    law = fit_error_law(t, t.square())
    assert law.slope == pytest.approx(2, abs=1e-3)
    torch.testing.assert_close(law(torch.tensor([1e6])), law(t[-1:]))


def test_attacks_that_left_pictures_out_are_refused():
    own, victims = pictures(4, 0), pictures(3, 1)
    with pytest.raises(InputError, match="every victim"):
        choose(own, victims, {"a": Tried(own, victims[:2])})
    with pytest.raises(InputError, match="every own picture"):
        choose(own, victims, {})
