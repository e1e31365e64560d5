import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.inversion.autoencoder import Autoencoder, train_autoencoder
from lightning_privacy.attacks.inversion.descent import descend
from lightning_privacy.attacks.inversion.flatness import FlatnessRule
from lightning_privacy.attacks.inversion.latent import LatentOptimisation
from lightning_privacy.attacks.inversion.optimisation import (
    OptimisationFromDecoder,
    PenaltyWeights,
    WhiteBoxOptimisation,
)
from lightning_privacy.attacks.inversion.target import InversionAttack, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.errors import InputError

SHAPE = (1, 8, 8)


def blobs(n, seed=0):
    """Smooth pictures: nine numbers blown up."""
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 1, 3, 3, generator=g), (8, 8), mode="bilinear", align_corners=True).clamp(0, 1)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU()).eval()


def psnr(a, b):
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


@pytest.fixture(scope="module")
def autoencoder_attack():
    target = InversionTarget(lambda x: x[..., ::3, ::3].flatten(1), "split", SHAPE)  # 9 of 64 pixels
    attack = LatentOptimisation(latent_dim=9, steps=60, restarts=2, tuning=4, autoencoder_steps=150)
    own = blobs(120)
    return target, attack, attack.fit(target, own[:100], own[100:], seed=0)


def test_a_nearly_invertible_network_is_undone_without_touching_it():
    model, own, victims = network(), blobs(8), blobs(6, seed=1)
    before = copy.deepcopy(model.state_dict())
    target = InversionTarget(model, "split", SHAPE)
    attack = WhiteBoxOptimisation(steps=150, most_steps=150, restarts=1, tuning=2, variation=(0, 1e-2))
    attack.fit(target, own, own, seed=0)
    with torch.no_grad():
        observed = model(victims)
    assert psnr(attack.reconstruct(target, observed, 0), victims) > 30
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_victims_do_not_feel_each_other():
    target, own, victims = InversionTarget(network(), "split", SHAPE), blobs(8), blobs(5, seed=1)
    attack = WhiteBoxOptimisation(steps=40, most_steps=40, restarts=2, variation=(1e-2,), rows=3)
    attack.fit(target, own, own, seed=0)
    with torch.no_grad():
        observed = target.observe(victims)
    together = attack.reconstruct(target, observed, 0)
    alone = torch.cat([attack.reconstruct(target, observed[k : k + 1], 0) for k in range(5)])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_penalties_are_chosen_by_the_true_error_on_own_pictures():
    half = InversionTarget(lambda x: x[..., ::2].flatten(1), "split", SHAPE)  # columns between are nobody's
    own = blobs(8) * 0.9
    attack = WhiteBoxOptimisation(steps=150, most_steps=150, restarts=1, tuning=8, variation=(0, 3e-2), size=(0, 100))
    attack.fit(half, torch.zeros(2, 1, 8, 8), own, seed=0)
    assert attack.weights == PenaltyWeights(variation=3e-2)


def test_the_best_restart_is_that_of_the_smallest_objective():
    # Two valleys in one number: the mean picture starts in the one that is not what leaked.
    target = InversionTarget(lambda x: (8 * x).sin().flatten(1), "split", SHAPE)
    own = torch.full((2, 1, 8, 8), 0.1)
    victims = torch.full((1, 1, 8, 8), 0.55)
    observed = target.observe(victims)
    objectives = []
    for restarts in (1, 4):
        attack = WhiteBoxOptimisation(steps=60, most_steps=60, restarts=restarts, variation=(0,))
        attack.fit(target, own, own, 0)
        found = attack.reconstruct(target, observed, 0)
        objectives.append(float((target.observe(found) - observed).square().sum()))
    assert objectives[1] <= objectives[0]


def test_a_start_is_used_and_can_be_kept():
    target, own = InversionTarget(lambda x: x.mean((1, 2, 3))[:, None], "logits", SHAPE), blobs(8)
    begin = blobs(3, seed=4).clamp(0.05, 0.95)
    attack = WhiteBoxOptimisation(
        steps=50, most_steps=50, restarts=1, variation=(0,), stay=(1e4,), start=lambda t, z, s: begin
    )
    attack.fit(target, own, own, 0)
    torch.testing.assert_close(attack.reconstruct(target, target.observe(begin), 0), begin, atol=1e-2, rtol=0)


def test_from_the_decoder_is_no_worse_than_the_decoder():
    own, victims = blobs(120), blobs(12, seed=1)
    target = InversionTarget(lambda x: F.avg_pool2d(x, 4).flatten(1), "features", SHAPE)
    decoder = TrainedDecoder(200, 16, 1, views=1, rule=FlatnessRule(check_every=25, drops=0))
    attack = OptimisationFromDecoder(decoder, steps=60, most_steps=60, tuning=8)
    record = attack.fit(target, own[:90], own[90:], seed=0)
    observed = target.observe(victims)
    assert record.steps == decoder.fit(target, own[:90], own[90:], seed=0).steps  # not trained twice
    assert (
        psnr(attack.reconstruct(target, observed, 0), victims)
        > psnr(decoder.reconstruct(target, observed, 0), victims) - 0.1
    )


def test_steps_are_doubled_where_that_finds_more_and_only_there():
    slow = InversionTarget(lambda x: x.flatten(1), "split", SHAPE)
    blind = InversionTarget(lambda x: torch.ones(len(x), 1) + 0 * x.sum(), "split", SHAPE)
    own = blobs(6)
    found = {}
    for name, target, most in (("slow", slow, 64), ("capped", slow, 8), ("blind", blind, 64)):
        attack = WhiteBoxOptimisation(steps=4, restarts=1, variation=(0,), lr=0.02, most_steps=most)
        found[name] = (attack.fit(target, own, own, 0).converged, attack.length)
    assert found == {"slow": (False, 64), "capped": (False, 8), "blind": (True, 4)}


def test_gradients_are_taken_under_the_mechanism():
    inside = []

    @contextmanager
    def mechanism(target):
        inside.append("in")
        yield
        inside.append("out")

    target, own = InversionTarget(lambda x: x, "split", SHAPE), blobs(4)
    attack = WhiteBoxOptimisation(steps=2, most_steps=2, restarts=1, variation=(0,), mechanism=mechanism)
    attack.fit(target, own, own, 0)
    attack.reconstruct(target, own, 0)
    assert inside == ["in", "out"]


def test_a_seed_decides_and_the_global_state_comes_back():
    target, own = InversionTarget(lambda x: x + 0.1 * torch.randn_like(x), "split", SHAPE), blobs(4)
    state = torch.get_rng_state()
    attack = WhiteBoxOptimisation(steps=5, most_steps=5, restarts=2, variation=(0,))
    attack.fit(target, own, own, 0)
    a, b, c = (attack.reconstruct(target, own, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_descent_reaches_each_rows_own_minimum():
    wanted = torch.tensor([[1.0], [-2.0], [1e-6]])
    scale = torch.tensor([1.0, 1e6, 1e-9])  # objectives whose sizes differ by orders of magnitude
    found = descend(lambda x: scale * (x - wanted).square().sum(1), torch.zeros(3, 1), 300, 0.3)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


def test_the_latent_search_fills_in_what_the_tap_left_out(autoencoder_attack):
    target, attack, record = autoencoder_attack
    victims = blobs(12, seed=1)
    pixels = WhiteBoxOptimisation(steps=100, most_steps=100, restarts=1, variation=(0, 1e-2), tuning=4)
    pixels.fit(target, blobs(40), blobs(40), 0)
    observed = target.observe(victims)
    assert record.steps > 0
    assert (
        psnr(attack.reconstruct(target, observed, 0), victims)
        > psnr(pixels.reconstruct(target, observed, 0), victims) + 1
    )


def test_latent_victims_do_not_feel_each_other(autoencoder_attack):
    target, attack, _ = autoencoder_attack
    observed = target.observe(blobs(3, seed=2))
    together = attack.reconstruct(target, observed, 0)
    alone = torch.cat([attack.reconstruct(target, observed[k : k + 1], 0) for k in range(3)])
    torch.testing.assert_close(together, alone, atol=5e-3, rtol=0)


def test_the_spread_of_latents_is_their_mean_and_covariance():
    own = blobs(400)
    network, _ = train_autoencoder(own, own[:50], 3, 0, width=8, views=1, rule=FlatnessRule(20))
    spread, latents = network.spread(own), network.encode(own)
    torch.testing.assert_close(spread.mean, latents.mean(0))
    covariance = spread.root @ spread.root.T
    torch.testing.assert_close(covariance.diagonal(), latents.var(0, correction=0), rtol=1e-3, atol=1e-6)
    assert isinstance(network, Autoencoder)


def test_arguments_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="restarts"):
        WhiteBoxOptimisation(restarts=0)
    with pytest.raises(InputError, match="none below 0"):
        WhiteBoxOptimisation(variation=(-1,))
    with pytest.raises(InputError, match="prior"):
        LatentOptimisation(prior=())
    for attack in (WhiteBoxOptimisation(), LatentOptimisation(), OptimisationFromDecoder()):
        assert isinstance(attack, InversionAttack)
        with pytest.raises(InputError, match="fit"):
            attack.reconstruct(InversionTarget(lambda x: x, "split", SHAPE), blobs(1), 0)
