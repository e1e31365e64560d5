import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lightning_privacy.attacks.inversion.class_metrics import measure_class_pictures
from lightning_privacy.attacks.inversion.crops import random_resized_crops
from lightning_privacy.attacks.inversion.generators import (
    AutoencoderGenerator,
    NetworkGenerator,
    PictureGenerator,
    load_stylegan,
    train_generator,
)
from lightning_privacy.attacks.inversion.plug_and_play import ClassPictures, PlugAndPlay, poincare_loss
from lightning_privacy.attacks.inversion.target import InversionTarget
from lightning_privacy.errors import InputError

SHAPE = (1, 8, 8)


class Bars(nn.Module):
    """Two numbers -> a picture whose halves are that bright."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 64)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.weight[:32, 0] = 1
            self.layer.weight[32:, 1] = 1
            self.layer.bias.zero_()

    def forward(self, latents):
        return self.layer(latents).tanh().view(-1, *SHAPE)


def model():
    """Class 0: the upper half is brighter; class 1: the lower half."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        sign = torch.cat([torch.ones(32), -torch.ones(32)]) / 20
        network[1].weight.copy_(torch.stack([sign, -sign]))
        network[1].bias.zero_()
    return network


def test_the_poincare_distance_is_that_of_the_closed_form():
    logits = torch.tensor([[3.0, -1.0]])
    u, v = torch.tensor([0.75, -0.25]), torch.tensor([0.9999, 0.0])
    expected = torch.acosh(1 + 2 * (u - v).square().sum() / ((1 - u.square().sum()) * (1 - v.square().sum())))
    torch.testing.assert_close(poincare_loss(logits, torch.tensor([0]))[0], expected, rtol=1e-3, atol=0)
    # Certainty does not end the gradient, as it does for cross-entropy.
    sure = torch.tensor([[40.0, 1.0]], requires_grad=True)
    assert torch.autograd.grad(poincare_loss(sure, torch.tensor([0])).sum(), sure)[0].abs().max() > 1e-4
    assert torch.autograd.grad(F.cross_entropy(sure, torch.tensor([0])), sure)[0].abs().max() < 1e-12


def test_the_attack_raises_the_class_and_leaves_the_model_alone():
    classifier, generator = model(), NetworkGenerator(Bars(), 2)
    before = copy.deepcopy(classifier.state_dict())
    attack = PlugAndPlay(candidates=12, optimised=4, kept=2, steps=40, lr=0.05, search_crops=2, final_crops=4)
    found = attack.attack(InversionTarget(classifier, "logits", SHAPE), generator, [0, 1], seed=0)
    assert [f.label for f in found] == [0, 1]
    for made in found:
        assert made.pictures.shape == (2, *SHAPE)
        assert made.confidence.mean() > made.before.mean() + 0.02
        assert (made.confidence[:-1] >= made.confidence[1:]).all()
    assert found[0].pictures[:, :, :3].mean() > found[0].pictures[:, :, 5:].mean() + 0.3
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())


def test_a_seed_decides_and_the_global_state_comes_back():
    attack = PlugAndPlay(6, 3, 1, steps=3, search_crops=1, final_crops=2)
    target, generator, state = (
        InversionTarget(model(), "logits", SHAPE),
        NetworkGenerator(Bars(), 2),
        torch.get_rng_state(),
    )
    a, b, c = (attack.attack(target, generator, [0], seed)[0].pictures for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_crops_are_those_of_linear_interpolation():
    x = torch.rand(1, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    found = random_resized_crops(x, torch.Generator().manual_seed(3), (0.25, 0.25))
    place = torch.rand(3, 1, generator=torch.Generator().manual_seed(3))[1:, 0]
    theta = torch.tensor([[[0.5, 0, place[1] * 1.0 - 0.5], [0, 0.5, place[0] * 1.0 - 0.5]]])
    grid = F.affine_grid(theta, [1, 2, 8, 6], align_corners=False)
    torch.testing.assert_close(
        found, F.grid_sample(x, grid, padding_mode="border", align_corners=False), atol=1e-5, rtol=0
    )
    with pytest.raises(InputError, match="share of the area"):
        random_resized_crops(x, torch.Generator(), (0, 1))


def test_a_trained_generator_draws_pictures_like_its_own():
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(120, 1, 2, 2, generator=g)
    own = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=True)
    generator, record = train_generator(own[:100], own[100:], seed=0, latent_dim=4, max_steps=100)
    assert isinstance(generator, AutoencoderGenerator) and isinstance(generator, PictureGenerator)
    assert record.steps == 100
    drawn = generator(generator.sample(200, g))
    assert drawn.shape == (200, *SHAPE)
    assert (drawn.mean(0) - own.mean(0)).abs().max() < 0.15
    assert (drawn.std(0) - own.std(0)).abs().max() < 0.15
    nearest = torch.cdist(drawn.flatten(1), own.flatten(1)).min(1).values
    noise = torch.cdist(torch.rand(200, 64, generator=g), own.flatten(1)).min(1).values
    assert nearest.mean() < noise.mean() / 2


def test_weights_are_read_from_safetensors_and_nothing_is_run(tmp_path):
    network = Bars()
    save_file({name: value * 2 for name, value in network.state_dict().items()}, tmp_path / "g.safetensors")
    generator = load_stylegan(tmp_path / "g.safetensors", network, 2, size=(4, 4))
    made = generator(torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(made[0, 0, 0], torch.full((4,), float(torch.tensor(1.0).tanh() + 1) / 2))
    assert made.shape == (1, 1, 4, 4)


def test_pickles_and_programs_are_refused(tmp_path):
    torch.save(Bars().state_dict(), tmp_path / "g.pt")
    (tmp_path / "disguised.safetensors").write_bytes((tmp_path / "g.pt").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, why in (
        ("g.pt", "run code"),
        ("disguised.safetensors", "run code"),
        ("cut.safetensors", "cannot be read"),
        ("other.safetensors", "not those of Bars"),
        ("missing.safetensors", "no generator at"),
    ):
        with pytest.raises(InputError, match=why):
            load_stylegan(tmp_path / name, Bars(), 2)


def test_classes_are_measured_by_another_classifier_and_by_distance():
    private = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    made = [ClassPictures(0, torch.full((2, *SHAPE), 0.3), torch.ones(2), torch.ones(2))]
    brightness = lambda x: x.mean((2, 3))  # noqa: E731
    scores = lambda x: torch.cat([0.5 - brightness(x), brightness(x) - 0.5], 1)  # noqa: E731
    found = measure_class_pictures(made, scores, brightness, private, torch.tensor([0, 0, 1]))
    assert found.recognised.tolist() == [True, True]
    torch.testing.assert_close(found.distance, torch.full((2,), 0.1))
    torch.testing.assert_close(found.natural, torch.full((2,), 0.2))
    with pytest.raises(InputError, match="no private picture"):
        measure_class_pictures(made, scores, brightness, private, torch.tensor([1, 1, 1]))


def test_what_cannot_work_is_refused():
    target, generator = InversionTarget(model(), "logits", SHAPE), NetworkGenerator(Bars(), 2)
    with pytest.raises(InputError, match="kept"):
        PlugAndPlay(candidates=2, optimised=3)
    with pytest.raises(InputError, match="the model has 2"):
        PlugAndPlay(6, 3, 1, 2).attack(target, generator, [2], 0)
    with pytest.raises(InputError, match="tap `logits`"):
        PlugAndPlay().attack(InversionTarget(model(), "split", SHAPE), generator, [0], 0)
    with pytest.raises(InputError, match="rises"):
        NetworkGenerator(Bars(), 2, (1, -1))
