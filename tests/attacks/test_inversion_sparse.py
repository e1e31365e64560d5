from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.inversion.optimisation import WhiteBoxOptimisation
from lightning_privacy.attacks.inversion.sparse_adaptive import (
    SurrogateFromDecoder,
    SurrogateOptimisation,
    SynthesisAttack,
    surrogate_thresholds,
    synthesise,
)
from lightning_privacy.attacks.inversion.target import InversionAttack, InversionTarget
from lightning_privacy.errors import InputError

SHAPE = (1, 8, 8)


def blobs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 1, 3, 3, generator=g), (8, 8), mode="bilinear", align_corners=True).clamp(0, 1)


class Code(nn.Module):
    """Codes of orthonormal 2x2 atoms and their negatives at stride 2: soft thresholding is the exact sparse code."""

    stride = 2

    def __init__(self, lam):
        super().__init__()
        h = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2) / 2
        self.register_buffer("dictionary", torch.cat([h, -h]))
        self.lam, self.soft = lam, False

    def synthesise(self, code):
        return F.conv_transpose2d(code, self.dictionary, stride=2)

    def forward(self, x):
        u = F.conv2d(x, self.dictionary, stride=2) - self.lam
        return F.relu(u) if not self.soft else _PassesGradient.apply(u)

    @contextmanager
    def surrogate(self):
        self.soft = True
        try:
            yield
        finally:
            self.soft = False


class _PassesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u.relu()

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return gradient * torch.sigmoid(u * 4)


class Defended(nn.Module):
    def __init__(self, lam):
        super().__init__()
        self.code, self.norm = Code(lam), nn.BatchNorm2d(8).eval()
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.linspace(-1, 1, 8))
            self.norm.running_var.copy_(torch.linspace(0.1, 4, 8))

    def forward(self, x):
        # Standardised picture by picture, as sparse-coding layers do.
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-6)
        return self.norm(self.code(x))


def defended(lam):
    model = Defended(lam).eval()
    return InversionTarget(model, "split", SHAPE, (("code", model.code),)), model


def correlation(a, b):
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return float(F.cosine_similarity(a, b).mean())


def test_a_code_is_undone_by_its_dictionary_up_to_brightness_and_contrast():
    target, _ = defended(lam=0.0)
    victims = blobs(12, seed=1)
    attack = SynthesisAttack()
    record = attack.fit(target, blobs(60), blobs(4), seed=0)
    made = attack.reconstruct(target, target.observe(victims).detach(), 0)
    assert record.converged and attack.applies(target)
    assert made.shape == victims.shape and made.min() >= 0 and made.max() <= 1
    assert correlation(made, victims) > 0.95
    mean_guess = (blobs(60).mean(0) - victims).square().mean()
    assert (made - victims).square().mean() < mean_guess / 2


def test_a_higher_threshold_leaves_less_to_synthesise():
    errors = []
    for lam in (0.0, 2.0):
        target, _ = defended(lam)
        attack = SynthesisAttack()
        attack.fit(target, blobs(60), blobs(4), seed=0)
        victims = blobs(12, seed=1)
        errors.append(
            float((attack.reconstruct(target, target.observe(victims).detach(), 0) - victims).square().mean())
        )
    assert errors[0] < errors[1]


def test_synthesis_without_a_method_is_the_transposed_convolution():
    layer = Code(0.0)
    code = torch.rand(2, 8, 4, 4)

    class Bare:
        dictionary, stride = layer.dictionary, 1

    atoms = torch.rand(5, 2, 3, 3)
    Bare.dictionary = atoms
    maps = torch.rand(2, 5, 6, 6)
    picture = torch.rand(2, 2, 6, 6)
    # The transpose by its definition: <conv(s), a> = <s, convT(a)>.
    torch.testing.assert_close(
        (F.conv2d(picture, atoms, padding=1) * maps).sum(),
        (picture * synthesise(Bare, maps)).sum(),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(synthesise(layer, code), layer.synthesise(code))


def test_a_search_that_gets_no_gradient_is_freed_by_the_surrogate():
    # From the grey mean nothing is active at this threshold, and no pixel gets a gradient.
    layer = Code(lam=0.9)
    target = InversionTarget(layer, "split", SHAPE, (("code", layer),))
    own = torch.full((4, *SHAPE), 0.2)
    victims = torch.where(torch.arange(8).view(1, 1, 1, 8) < 4, 0.95, 0.2).expand(1, *SHAPE)
    observed = layer(victims)
    assert observed.abs().sum() > 0
    plain = WhiteBoxOptimisation(steps=60, most_steps=60, restarts=1, variation=(0,))
    freed = SurrogateOptimisation(steps=60, most_steps=60, restarts=1, variation=(0,))
    errors = []
    for attack in (plain, freed):
        attack.fit(target, own, own, 0)
        errors.append(float((attack.reconstruct(target, observed, 0) - victims).square().mean()))
    assert errors[1] < errors[0] / 4
    assert not layer.soft


def test_layers_without_a_surrogate_are_left_as_they_are():
    with surrogate_thresholds(InversionTarget(lambda x: x, "split", SHAPE, (("plain", nn.Identity()),))):
        pass


def test_the_model_is_left_alone():
    target, model = defended(0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for attack in (SynthesisAttack(), SurrogateOptimisation(steps=3, most_steps=3, restarts=1, tuning=2)):
        attack.fit(target, blobs(8), blobs(4), 0)
        attack.reconstruct(target, target.observe(blobs(2)).detach(), 0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.code._forward_hooks


def test_what_cannot_be_synthesised_is_refused():
    target, model = defended(0.3)
    plain = InversionTarget(model, "split", SHAPE)
    flat = InversionTarget(lambda x: model(x).flatten(1), "features", SHAPE, target.layers)
    for wrong, why in ((plain, "layer with a dictionary"), (flat, "a map of 8 channels")):
        assert not SynthesisAttack().applies(wrong)
        with pytest.raises(InputError, match=why):
            SynthesisAttack().fit(wrong, blobs(4), blobs(4), 0)
    silent = InversionTarget(lambda x: x, "split", SHAPE, target.layers)
    with pytest.raises(InputError, match="runs before the tap"):
        SynthesisAttack().fit(silent, blobs(4), blobs(4), 0)


def test_the_adaptive_attacks_are_inversion_attacks():
    names = {a.name for a in (SynthesisAttack(), SurrogateOptimisation(), SurrogateFromDecoder())}
    assert len(names) == 3
    assert all(
        isinstance(a, InversionAttack) for a in (SynthesisAttack(), SurrogateOptimisation(), SurrogateFromDecoder())
    )
