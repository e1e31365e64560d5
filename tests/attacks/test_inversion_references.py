import pytest
import torch
import torch.nn.functional as F

from lightning_privacy.attacks.inversion.references import (
    NearestAux,
    RandomDecoder,
    autoencoder_ceiling,
    class_mean_pictures,
    mean_pictures,
)
from lightning_privacy.attacks.inversion.target import InversionAttack, InversionTarget
from lightning_privacy.errors import InputError

SHAPE = (1, 8, 8)


def blobs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 1, 3, 3, generator=g), (8, 8), mode="bilinear", align_corners=True).clamp(0, 1)


def mse(a, b):
    return float((a - b).square().mean())


def test_the_mean_minimises_the_squared_error_among_constants():
    own = blobs(50)
    mean = mean_pictures(own, 50)
    assert mse(mean, own) < min(mse(mean + d, own) for d in (0.01, -0.01))
    torch.testing.assert_close(mse(mean, own), float(own.var(0, correction=0).mean()))


def test_the_label_is_worth_the_variance_between_classes():
    own, labels = blobs(60), torch.arange(60) % 3
    own = own / 2 + labels.view(-1, 1, 1, 1) / 6
    found = class_mean_pictures(own, labels, torch.tensor([2, 0]))
    torch.testing.assert_close(found, torch.stack([own[labels == k].mean(0) for k in (2, 0)]))
    assert mse(class_mean_pictures(own, labels, labels), own) < mse(mean_pictures(own, 60), own)
    with pytest.raises(InputError, match="label a picture"):
        class_mean_pictures(own, labels[:3], labels)


def test_the_nearest_own_picture_is_found_by_the_tap_on_a_common_scale():
    own = blobs(30)
    loud = torch.ones(1, 64)
    loud[0, 0] = 1e4  # one pixel that would decide everything on its own
    target = InversionTarget(lambda x: x.flatten(1) * loud, "features", SHAPE)
    attack = NearestAux()
    attack.fit(target, own, own, 0)
    victims = blobs(9, seed=1)
    unit = own.flatten(1).std(0, correction=0)
    expected = own[torch.cdist(victims.flatten(1) / unit, own.flatten(1) / unit).argmin(1)]
    torch.testing.assert_close(attack.reconstruct(target, target.observe(victims), 0), expected)
    torch.testing.assert_close(attack.reconstruct(target, target.observe(own[4:7]), 0), own[4:7])


def test_a_decoder_that_was_never_trained_is_worse_than_the_mean():
    own, victims = blobs(30) * 0.3 + 0.65, blobs(9, seed=1) * 0.3 + 0.65
    target = InversionTarget(lambda x: x.flatten(1), "features", SHAPE)
    attack = RandomDecoder(width=8, blocks=1)
    attack.fit(target, own, own, seed=0)
    made = attack.reconstruct(target, target.observe(victims), 0)
    assert mse(made, victims) > mse(mean_pictures(own, 9), victims)
    again = RandomDecoder(width=8, blocks=1)
    again.fit(target, own, own, seed=0)
    assert torch.equal(made, again.reconstruct(target, target.observe(victims), 0))


def test_the_ceiling_falls_with_the_numbers_that_the_tap_sends():
    own, victims = blobs(120), blobs(20, seed=1)
    errors = [
        mse(autoencoder_ceiling(own[:100], own[100:], victims, 0, size, max_steps=60)[0], victims) for size in (None, 2)
    ]
    assert errors[0] < errors[1] / 2
    assert errors[1] < mse(mean_pictures(own, 20), victims)


def test_references_that_fit_are_attacks():
    for attack in (NearestAux(), RandomDecoder()):
        assert isinstance(attack, InversionAttack)
        with pytest.raises(InputError, match="fit"):
            attack.reconstruct(InversionTarget(lambda x: x, "split", SHAPE), blobs(1), 0)
