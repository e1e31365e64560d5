"""The attack that knows the defence must find what the proxy cannot read, and nothing where there is nothing."""

import pytest
import torch

from lightning_privacy.attacks.membership.calibrated_loss import CalibratedLoss
from lightning_privacy.attacks.membership.selection import fit_attack
from lightning_privacy.callbacks.smp_lora.attack import ProxyAwareAttack
from lightning_privacy.core.results import Signals
from lightning_privacy.metrics.membership import auroc

TIMESTEPS = torch.linspace(50, 950, 10).long().repeat_interleave(2)
FEATURES = 16


def no_leak(change, maps, generator):
    return change, maps


def to_either_side(change, maps, generator):
    side = torch.randint(0, 2, (len(change), 1), generator=generator) * 2.0 - 1
    return change + 0.08 * side, maps


def in_one_range(change, maps, generator):
    return change - 0.08 * (TIMESTEPS < 300), maps


def in_a_direction_of_the_map(change, maps, generator):
    direction = torch.zeros(FEATURES)
    direction[:2] = torch.tensor([1.0, -1.0])  # the mean over the map stays
    return change, maps + 0.6 * direction


def signals(n, seed, leak=no_leak):
    g = torch.Generator().manual_seed(seed)
    difficulty = 0.3 * torch.randn(n, 1, generator=g) - TIMESTEPS / 1000
    change = 0.05 * torch.randn(n, len(TIMESTEPS), generator=g) + 0.02 * torch.randn(n, 1, generator=g)
    maps = 0.3 * torch.randn(n, len(TIMESTEPS), FEATURES, generator=g)
    reference_maps = 0.3 * torch.randn(n, len(TIMESTEPS), FEATURES, generator=g)
    change, maps = leak(change, maps, g)
    return Signals(
        tuple(f"{seed}-{i}" for i in range(n)),
        loss=(difficulty + change).exp(),
        reference_loss=difficulty.exp(),
        timesteps=TIMESTEPS,
        error_map=(difficulty.unsqueeze(2) + maps).exp(),
        reference_error_map=(difficulty.unsqueeze(2) + reference_maps).exp(),
    )


def held_out(attack, leak, seed):
    fitted = fit_attack(attack, signals(30, 4 * seed, leak), signals(40, 4 * seed + 1), seed)
    return auroc(fitted.score(signals(30, 4 * seed + 2, leak)), fitted.score(signals(40, 4 * seed + 3)))


@pytest.mark.parametrize("leak", [to_either_side, in_one_range, in_a_direction_of_the_map])
def test_it_finds_leaks_that_the_proxy_cannot_read(leak):
    aware = [held_out(ProxyAwareAttack(), leak, seed) for seed in range(3)]
    plain = [held_out(CalibratedLoss(), leak, seed) for seed in range(3)]
    assert sum(aware) / 3 > 0.75
    assert sum(aware) > sum(plain) + 0.15


def test_it_stays_at_chance_where_nothing_leaks():
    mean = sum(held_out(ProxyAwareAttack(), no_leak, seed) for seed in range(20)) / 20
    assert mean == pytest.approx(0.5, abs=4 * 0.07 / 20**0.5)  # .07: an AUROC of 30 against 40 records on noise


def test_it_says_what_is_missing():
    with pytest.raises(RuntimeError, match="before fit"):
        ProxyAwareAttack().score(signals(4, 0))
