"""The client of a leakage audit shares exactly what the module's own training would."""

import pytest
import torch
import torch.nn.functional as F

from lightning_privacy.attacks.leakage.update import LocalTraining
from lightning_privacy.callbacks.audits.leakage_client import check_loss, client_of
from lightning_privacy.callbacks.audits.leakage_pictures import read_leakage_pictures
from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.testing.settings import split_images
from lightning_privacy.testing.smooth_classifier import SmoothClassifier


@pytest.fixture(scope="module")
def split():
    made = split_images()
    made.setup("fit")
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_update_is_that_of_the_modules_own_training(split, smoothing):
    module = ImageClassifier("small_cnn", classes=4, image_size=8, label_smoothing=smoothing)
    module.configure_model()
    module.network.conv1.weight.requires_grad_(False)
    pictures = read_leakage_pictures(module, split, 3, 0)
    client = client_of(module, pictures.template)
    assert check_loss(client, pictures.victims, pictures.labels, "train") == 4
    batch = {**pictures.template, "image": pictures.victims, "label": pictures.labels}
    module.train()
    module.log = lambda *arguments, **options: None  # there is no trainer to log to
    module.training_step(batch, 0)["loss"].backward()
    expected = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    found = client.update(pictures.victims, pictures.labels, "train")
    assert set(found) == set(expected) and "network.conv1.weight" not in found
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_difference_is_that_of_plain_sgd_and_leaves_the_client_as_it_was(split):
    module = SmoothClassifier(norm=True)
    pictures = read_leakage_pictures(module, split, 4, 0)
    client = client_of(module, pictures.template)
    local = LocalTraining(3, 0.1, 2)
    found = client.update(pictures.victims, pictures.labels, "train", local)
    again = client.update(pictures.victims, pictures.labels, "train", local)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for rows in ([0, 1], [2, 3], [0, 1]):
        optimizer.zero_grad()
        F.cross_entropy(module.network(pictures.victims[rows]), pictures.labels[rows]).backward()
        optimizer.step()
    for name, value in module.named_parameters():
        assert torch.allclose(found[name], value.detach() - before[name], atol=1e-7)
        assert torch.equal(found[name], again[name])


def test_defences_act_on_every_local_step_and_draw_from_the_seed(split):
    class Noise:
        def defended_update(self, gradients, generator):
            return {n: torch.randn(g.shape, generator=generator) for n, g in gradients.items()}

    module = SmoothClassifier()
    pictures = read_leakage_pictures(module, split, 2, 0)
    client = client_of(module, pictures.template)
    records = pictures.victims, pictures.labels, "train", LocalTraining(2, 0.5, 1), (Noise(),)
    one, same, other = (client.update(*records, seed)["network.conv1.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.5 * 2**0.5, rel=0.1)


def test_a_defence_of_single_records_gets_each_records_gradient(split):
    module = SmoothClassifier()
    pictures = read_leakage_pictures(module, split, 2, 0)
    client = client_of(module, pictures.template)
    clip = ClipAndNoise(max_norm=1e-3, noise_multiplier=0.0, unit="record")
    clip.resolved_unit = "record"
    found = client.update(pictures.victims, pictures.labels, "train", None, (clip,))
    expected = 0
    for i in range(2):
        one = client.gradient(pictures.victims[i : i + 1], pictures.labels[i : i + 1], "train")
        norm = torch.cat([g.flatten() for g in one.values()]).norm()
        expected = expected + one["network.head.weight"] / norm * 1e-3 / 2
    assert torch.allclose(found["network.head.weight"], expected, rtol=1e-4, atol=1e-9)
