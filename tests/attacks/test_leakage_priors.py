"""Attacks with a prior on pictures, what is scored, and what is handed to another package."""

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_privacy.attacks.leakage.breaching_export import to_breaching
from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.generator import GeneratedPictures, GeneratorNetwork
from lightning_privacy.attacks.leakage.joint import JointOptimisation
from lightning_privacy.attacks.leakage.latent import LatentSearch
from lightning_privacy.attacks.leakage.partial import PartialMatching
from lightning_privacy.attacks.leakage.recovered import AuxiliaryAttack, LeakageAttack
from lightning_privacy.attacks.leakage.registry import ATTACKS
from lightning_privacy.attacks.leakage.scoring import affine_aligned, best_order
from lightning_privacy.attacks.leakage.target import Secret, target_of
from lightning_privacy.attacks.leakage.update import LocalTraining
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet

DIGITS = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16


def network(norm="none"):
    torch.manual_seed(0)
    return LeakageLeNet(6, 1, 8, norm=norm, width=8)


def ssim(found, truth):
    return float(paired_similarity(found.pictures, truth)["ssim"].mean())


def test_a_generator_trained_on_one_update_makes_its_picture():
    net, image = network(), DIGITS[:1]
    attack = GeneratorNetwork(steps=150, restarts=1, width=8)
    found = attack.reconstruct(target_of(net, (1, 8, 8), 6), share_update(net, image, torch.tensor([2])), 0)
    assert ssim(found, image) > 0.8


def test_a_generator_extends_to_hidden_secrets():
    net = network("batch")
    target = target_of(net, (1, 8, 8), 6, {"norm1.weight": Secret((8,)), "norm1.bias": Secret((8,))})
    update = share_update(net, DIGITS[:1], torch.tensor([2]), withheld=target.secrets)
    found = JointOptimisation(GeneratorNetwork(steps=5, restarts=2, width=4)).reconstruct(target, update, 0)
    assert set(found.secrets) == set(target.secrets)
    with pytest.raises(RuntimeError, match="before start"):
        GeneratedPictures().pictures({})


@pytest.fixture(scope="module")
def decoded():
    attack = LatentSearch(code=24, width=8, evaluations=40, restarts=2, epochs=12)
    return attack, attack.fit(DIGITS[100:1000], DIGITS[1000:1200], 0)


def test_latent_search_with_only_the_head_beats_pixels(decoded):
    attack, record = decoded
    net, image = network(), DIGITS[:1]
    target, update = target_of(net, (1, 8, 8), 6), share_update(net, image, torch.tensor([2]))
    latent = PartialMatching(("head",), attack).reconstruct(target, update, 0)
    pixels = PartialMatching(("head",), DeepLeakage(evaluations=40, restarts=2)).reconstruct(target, update, 0)
    assert ssim(latent, image) > 0.5 and ssim(latent, image) > ssim(pixels, image)
    assert record.history[-1][1] < record.history[0][1] and record.steps == 15 * len(record.history)


def test_a_decoder_that_was_stopped_early_says_so(decoded):
    assert not decoded[1].converged


def test_a_latent_search_needs_a_fit_on_pictures_of_the_same_size(decoded):
    net = LeakageLeNet(6, 1, 16, width=4)
    image = torch.rand(1, 1, 16, 16)
    target, update = target_of(net, (1, 16, 16), 6), share_update(net, image, torch.tensor([2]))
    with pytest.raises(InputError, match="before latent.fit"):
        LatentSearch().reconstruct(target, update, 0)
    with pytest.raises(InputError, match="another|fit it on pictures"):
        decoded[0].reconstruct(target, update, 0)


def test_a_batch_is_put_in_the_order_of_its_records():
    truth, shuffle = DIGITS[:6], torch.tensor([3, 1, 5, 0, 2, 4])
    found = truth[shuffle] + 0.05 * torch.randn(6, 1, 8, 8)
    assert best_order(found, truth).tolist() == shuffle.argsort().tolist()


def test_alignment_undoes_brightness_and_contrast_but_not_a_wrong_picture():
    truth = DIGITS[:2]
    torch.testing.assert_close(affine_aligned(0.3 + 0.2 * truth, truth), truth, atol=1e-5, rtol=0)
    flat = affine_aligned(torch.full_like(truth, 0.7), truth)
    torch.testing.assert_close(flat, truth.mean((2, 3), keepdim=True).expand_as(truth))


def test_breaching_gets_parameters_gradients_and_local_steps_in_one_order():
    net = network("batch")
    target, images, labels = target_of(net, (1, 8, 8), 6), DIGITS[:4], torch.tensor([3, 1, 0, 2])
    update = share_update(net, images, labels, mode="eval", local=LocalTraining(2, 0.1, 2), tell="labels")
    (payload,), (shared,) = to_breaching(target, update)
    for parameter, given, change in zip(net.parameters(), payload["parameters"], shared["gradients"], strict=True):
        assert torch.equal(parameter, given) and change.shape == given.shape
    assert len(payload["buffers"]) == len(list(net.buffers()))
    assert payload["metadata"]["modality"] == "vision" and payload["metadata"].classes == 6
    assert not hasattr(payload["metadata"], "size")
    local = shared["metadata"]["local_hyperparams"]
    assert (local["lr"], local["steps"], local["data_per_step"]) == (0.1, 2, 2)
    assert [x.tolist() for x in local["labels"]] == [[1, 3], [0, 2]]
    (payload,), _ = to_breaching(target, share_update(net, images, labels))
    assert payload["buffers"] is None


def test_breaching_cannot_do_with_less_than_everything():
    net = network("batch")
    target = target_of(net, (1, 8, 8), 6, {"norm1.weight": Secret((8,)), "norm1.bias": Secret((8,))})
    update = share_update(net, DIGITS[:1], torch.tensor([2]), withheld=target.secrets)
    with pytest.raises(InputError, match="with_secrets"):
        to_breaching(target, update)
    with pytest.raises(InputError, match="were not shared"):
        to_breaching(target_of(net, (1, 8, 8), 6), update)


def test_every_attack_is_registered_under_its_name_and_builds_without_arguments():
    for name, attack in ATTACKS.items():
        assert attack.name == name and isinstance(attack(), LeakageAttack)
    assert isinstance(LatentSearch(), AuxiliaryAttack) and not isinstance(DeepLeakage(), AuxiliaryAttack)
