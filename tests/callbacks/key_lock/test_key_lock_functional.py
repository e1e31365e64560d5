"""The equations of the lock against NumPy, and the two facts about ReLU and keys that the card names."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.key_lock.functional import (
    affine,
    branches,
    derived_key,
    key_gain,
    lock,
    refit,
    softplus_inverse,
)
from lightning_privacy.callbacks.key_lock.layers import SecretLock
from lightning_privacy.callbacks.key_lock.start import fresh_values

RNG = np.random.default_rng(0)
KEY, WEIGHT, BIAS = RNG.normal(size=16), RNG.normal(size=(5, 16)), RNG.normal(size=5)
PHI = {
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "identity": lambda z: z,
}


@pytest.mark.parametrize("branch", PHI)
def test_a_branch_is_its_equation(branch):
    made = lock(torch.tensor(KEY), torch.tensor(WEIGHT), torch.tensor(BIAS), branch)
    np.testing.assert_allclose(made.numpy(), PHI[branch](WEIGHT @ KEY + BIAS), rtol=1e-12)


def test_the_paper_s_branches_are_alike_and_ours_lets_the_shift_be_negative():
    assert branches("relu") == ("relu", "relu") and branches("sigmoid") == ("sigmoid", "sigmoid")
    assert branches("softplus") == ("softplus", "identity")


def test_the_affine_part_broadcasts_over_what_follows_the_channels():
    x, scale, shift = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=3), RNG.normal(size=3)
    made = affine(torch.tensor(x), torch.tensor(scale), torch.tensor(shift), trailing=2)
    np.testing.assert_allclose(made.numpy(), x * scale[:, None, None] + shift[:, None, None], rtol=1e-12)
    last = affine(torch.tensor(x), torch.tensor(x[0, 0]), torch.tensor(x[0, 1]), trailing=0)
    np.testing.assert_allclose(last.numpy(), x * x[0, 0] + x[0, 1], rtol=1e-12)


def test_the_inverse_undoes_softplus():
    values = torch.tensor([1e-3, 0.5, 1.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(nn.functional.softplus(softplus_inverse(values)), values, rtol=1e-12, atol=0)


def test_a_refitted_bias_gives_the_same_for_a_new_key():
    old, new = torch.tensor(KEY), torch.tensor(RNG.normal(size=16))
    weight, bias = torch.tensor(WEIGHT), torch.tensor(BIAS)
    again = lock(new, weight, refit(bias, weight, old, new), "relu")
    torch.testing.assert_close(again, lock(old, weight, bias, "relu"), rtol=1e-12, atol=1e-12)


def test_a_step_moves_our_pre_activations_as_a_bias_twice_and_the_paper_s_by_the_key_s_norm():
    for activation, distribution, expected in (("softplus", "normal", 2), ("relu", "uniform", 1 + 1024 / 3)):
        key = derived_key(bytes(32), "conv1", 1024, distribution) * key_gain(activation, 1024)
        weight, bias = torch.zeros(1, 1024, requires_grad=True), torch.zeros(1, requires_grad=True)
        lock(key, weight, bias, "identity").sum().backward()
        moved = (weight.grad @ key + bias.grad).item()  # by a gradient step of rate 1
        assert moved == pytest.approx(expected, rel=0.1)


def test_derived_keys_have_their_distribution_and_are_independent():
    normal, uniform = (derived_key(bytes(range(32)), "a", 20000, d) for d in ("normal", "uniform"))
    assert normal.mean().abs() < 0.03 and normal.std().item() == pytest.approx(1, abs=0.03)
    assert uniform.min() >= 0 and uniform.max() <= 1 and uniform.var().item() == pytest.approx(1 / 12, abs=2e-3)
    other = derived_key(bytes(range(32)), "b", 20000, "normal")
    assert abs((normal @ other).item()) / 20000 < 0.03


def _starts(activation, distribution, seeds, channels=256, d=1024):
    secret = SecretLock((channels,), d, activation, distribution)
    for seed in seeds:
        key = derived_key(bytes([seed] * 32), "a", d, distribution)
        yield secret.derive(
            secret.secret_tensors() | fresh_values(secret, (key, key), _generator(), 0.0) | {"key": key}
        )


def _generator():
    return torch.Generator().manual_seed(0)


def test_relu_kills_half_of_the_channels_and_softplus_none():
    ((scale, shift),) = _starts("relu", "uniform", [1])
    assert (scale > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert ((scale == 0) & (shift == 0)).float().mean().item() == pytest.approx(0.25, abs=0.08)
    ((scale, shift),) = _starts("softplus", "normal", [1])
    torch.testing.assert_close(scale, torch.ones(256), rtol=1e-6, atol=0)
    torch.testing.assert_close(shift, torch.zeros(256), rtol=0, atol=1e-6)


def test_a_dead_channel_gets_no_gradient_and_a_softplus_channel_does():
    for activation in ("relu", "softplus"):
        secret = SecretLock((256,), 64, activation)
        secret.fill(
            secret.secret_tensors()
            | fresh_values(secret, (torch.ones(64),) * 2, _generator(), 0.0)
            | {"key": torch.ones(64)}
        )
        scale, shift = secret()
        (scale.sum() + shift.sum()).backward()
        still = (secret.scale_weight.grad == 0).all(1) & (secret.shift_weight.grad == 0).all(1)
        dead = (scale == 0) & (shift == 0)
        assert torch.equal(still, dead) and bool(dead.any()) == (activation == "relu")


def test_two_uniform_keys_make_most_of_a_scale_alike_and_two_normal_ones_do_not():
    torch.manual_seed(0)
    weight = torch.randn(4000, 1024)
    for distribution, cosine in (("uniform", 0.25 / (0.25 + 1 / 12)), ("normal", 0.0)):
        one, other = (weight @ derived_key(bytes([seed] * 32), "a", 1024, distribution) for seed in (1, 2))
        assert torch.cosine_similarity(one, other, dim=0).item() == pytest.approx(cosine, abs=0.08)


def test_the_gradient_of_a_lock_is_an_outer_product_with_the_key():
    secret = SecretLock((6,), 32, "softplus")
    key = derived_key(bytes(32), "a", 32, "normal")
    secret.fill(secret.secret_tensors() | fresh_values(secret, (key, key), _generator(), 0.0) | {"key": key})
    scale, _ = secret()
    (scale * torch.linspace(1, 2, 6)).sum().backward()
    row = secret.scale_weight.grad[0] / secret.scale_bias.grad[0]
    torch.testing.assert_close(row * math.sqrt(32), key)
