"""What an inversion attacker sees: the frozen model at a tap, and nothing else of the run."""

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.audits.inversion_target import (
    batch_like,
    check_taps,
    frozen,
    read_pictures,
    target_at,
)
from lightning_privacy.errors import InputError, MissingProtocolError, NoEffectError
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.testing.settings import split_images


@pytest.fixture
def module():
    made = ImageClassifier("split_cnn", classes=4, image_size=16, network_args={"width": 2})
    made.configure_model()
    return made


def target(module, tap, layer=None, images=None):
    images = torch.rand(3, 3, 16, 16) if images is None else images
    template = {"image": images, "label": torch.zeros(len(images)).long(), "caption": ["a"] * len(images)}
    return target_at(module, tap, layer, template, (3, 16, 16)), images


def test_each_tap_is_what_the_network_computes_there(module):
    network = module.network
    with frozen(module):
        for tap, layer, truth in (
            ("split", "network.first_part", network.first_part),
            ("features", "network.second_part", lambda x: network.second_part(network.first_part(x))),
            ("features", None, lambda x: module.embedding((x, None))),
            ("logits", None, network),
            ("probabilities", None, lambda x: network(x).softmax(1)),
        ):
            at, images = target(module, tap, layer)
            assert torch.equal(at.observe(images), truth(images)), tap


def test_what_follows_the_tap_does_not_run(module):
    ran = []
    module.network.third_part.register_forward_hook(lambda *_: ran.append(1))
    with frozen(module):
        at, images = target(module, "split", "network.first_part")
        at.observe(images)
    assert not ran


def test_the_attacker_differentiates_in_pictures_and_never_in_weights(module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    module.network.first_part[0].weight.requires_grad_(False)
    with frozen(module):
        at, images = target(module, "split", "network.first_part")
        images = images.requires_grad_(True)
        at.observe(images).square().sum().backward()
        assert images.grad.abs().sum() > 0
        assert not any(weight.requires_grad for weight in module.parameters())
    assert all(weight.grad is None for weight in module.parameters())
    assert module.training and module.network.first_part[4].training
    flags = [weight.requires_grad for weight in module.parameters()]
    assert flags.count(False) == 1
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_random_state_comes_back_and_noise_is_drawn_anew(module):
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    module.network.first_part.append(Noise())
    state = torch.get_rng_state()
    with frozen(module):
        at, images = target(module, "split", "network.first_part")
        assert not torch.equal(at.observe(images), at.observe(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_any_length_are_filled_from_one_of_the_users(module):
    images = torch.rand(5, 3, 16, 16)
    one = batch_like({"image": images[:2], "label": torch.tensor([7, 8]), "caption": ["a", "b"], "fps": 3}, images)
    assert one["label"].tolist() == [7, 8, 7, 8, 7] and one["caption"] == ["a", "b", "a", "b", "a"] and one["fps"] == 3
    assert torch.equal(one["image"], images)
    assert batch_like([images[:2], torch.tensor([7, 8])], images[:1])[1].tolist() == [7]


def test_taps_that_are_not_there_are_named(module):
    with pytest.raises(InputError, match="needs its name, such as"):
        check_taps(module, {"split": None})
    with pytest.raises(NoEffectError, match="No layer of ImageClassifier is called `network.first`"):
        check_taps(module, {"split": "network.first"})
    with pytest.raises(InputError, match="matches"):
        check_taps(module, {"split": "network.first_part*"})
    import lightning.pytorch as L

    with pytest.raises(MissingProtocolError, match="LightningModule.logits"):
        check_taps(L.LightningModule(), {"logits": None})
    with pytest.raises(MissingProtocolError, match="LightningModule.embedding"):
        check_taps(L.LightningModule(), {"features": None})


def test_a_layer_that_does_not_run_or_returns_no_tensor_is_one_clear_error(module):
    module.idle = nn.Linear(2, 2)

    class Pair(nn.Module):
        def forward(self, x):
            return {"x": x}

    with frozen(module):
        at, images = target(module, "split", "idle")
        with pytest.raises(InputError, match="does not run when the module classifies"):
            at.observe(images)
        module.network.second_part.append(Pair())
        at, images = target(module, "split", "network.second_part")
        with pytest.raises(InputError, match="returns a dict and no tensor"):
            at.observe(images)


def test_pictures_outside_zero_and_one_are_refused(module):
    split = split_images()
    split.setup("fit")
    pictures, labels, template = read_pictures(module, split, "holdout", 3)
    assert len(labels) == 3 and pictures.shape == (3, 3, 8, 8) and len(template["image"]) >= 1

    class Normalised:
        def loader(self, role, batch_size=None):
            return ({**batch, "image": batch["image"] * 2 - 1} for batch in split.loader(role))

    with pytest.raises(InputError, match="normalise inside the module"):
        read_pictures(module, Normalised(), "holdout")
