"""What attacks are handed: an ordinary network that computes the same, and names of what is secret in it."""

import copy

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.joint import JointOptimisation, dead_channels
from lightning_privacy.attacks.leakage.known_lock import KnownLock
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.callbacks.key_lock.attack import leakage_view
from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.key_lock.gates import layer_before
from lightning_privacy.callbacks.key_lock.layers import PrivateAffineNorm
from lightning_privacy.callbacks.key_lock.protect import protect
from lightning_privacy.modules.networks.cifar_resnet import CifarResNet18
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet

HOWS = [
    {"layers": "first"},
    {"layers": "all", "spread": 0.5},
    {"layers": "all", "activation": "relu", "key_distribution": "uniform", "chain": True},
    {"layers": "all", "activation": "sigmoid"},
]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_and_public_gradients_are_those_of_the_locked_module(net, batch, how, mode):
    protect(net, key_length=32, **how)
    net(batch[0])
    view = leakage_view(net.train(mode == "train"))
    assert not any("secret" in n for n, _ in view.network.named_parameters())
    for module in (net, view.network):
        module.zero_grad()
        nn.functional.cross_entropy(module(batch[0]), batch[1]).backward()
    torch.testing.assert_close(view.network(batch[0]), net(batch[0]), rtol=1e-5, atol=1e-6)
    there = {n: p.grad for n, p in view.network.named_parameters()}
    for name, p in net.named_parameters():
        if ".secret." not in name:
            torch.testing.assert_close(there.pop(name), p.grad, rtol=1e-4, atol=1e-7)
    assert set(there) == set(view.secrets)
    assert {n: tuple(p.shape) for n, p in view.network.named_parameters() if n in view.secrets} == {
        n: s.shape for n, s in view.secrets.items()
    }
    assert list(view.network.state_dict()) == list(nn.Module.state_dict(view.network))
    target_of(view.network, (3, 8, 8), 4, view.secrets, draw_secrets=view.draw_secrets, lock=view.lock)


def test_the_module_itself_stays_as_it_is(net, batch):
    protect(net)
    leakage_view(net).network[1].weight.data.zero_()
    assert net[1].scale_and_shift()[0].min() > 0.9


def test_a_module_without_locks_is_copied(net, batch):
    view = leakage_view(net)
    assert view.network is not net and not view.secrets and view.lock is None and view.draw_secrets is None
    assert torch.equal(view.network.eval()(batch[0]), net.eval()(batch[0]))
    with pytest.raises(TypeError, match="no lock"):
        view.draw_through_lock(torch.Generator())


def test_a_private_layer_alone_is_a_plain_one():
    layer = PrivateAffineNorm(nn.BatchNorm1d(3))
    view = leakage_view(layer)
    assert isinstance(view.network, nn.BatchNorm1d) and set(view.secrets) == {"weight", "bias"} and view.lock is None
    drawn = view.draw_secrets(torch.Generator().manual_seed(0))
    assert 0 < (drawn["weight"] - 1).abs().mean() < 0.4 and drawn["bias"].abs().mean() < 0.4


@pytest.mark.parametrize("how", HOWS)
def test_the_lock_makes_the_module_s_own_secrets_of_its_own_key_and_passes_gradients(net, how):
    protect(net, key_length=32, **how)
    view = leakage_view(net)
    keys = [
        layer.secret.key
        for layer in (net[1], net[4])
        if getattr(getattr(layer, "secret", None), "key", None) is not None
    ]
    key = torch.cat(keys).double().requires_grad_()
    derived = view.lock.derive(key)
    for name, value in view.network.named_parameters():
        if name in view.secrets:
            torch.testing.assert_close(derived[name].float(), value.detach(), rtol=1e-4, atol=1e-5)
    sum(v.square().sum() for v in derived.values()).backward()
    assert key.grad.abs().sum() > 0
    generator = torch.Generator().manual_seed(0)
    assert view.lock.draw_key(generator).shape == key.shape
    for drawn in (view.draw_secrets(generator), view.draw_through_lock(generator)):
        assert {n: tuple(v.shape) for n, v in drawn.items()} == {n: s.shape for n, s in view.secrets.items()}
        # Keys are the machine's own randomness, and under ReLU a layer's few values can all be zero in both draws.
        assert not all(torch.allclose(drawn[n], derived[n].float()) for n in drawn)


def test_signs_are_told_as_the_activation_has_them(net):
    twin, tilted = copy.deepcopy(net), copy.deepcopy(net)
    protect(net)
    protect(twin, activation="relu")
    tilted[1].weight.data[0] = -1
    protect(tilted)
    told = [[(s.nonnegative, s.gates) for s in leakage_view(n).secrets.values()] for n in (net, twin, tilted)]
    assert told == [[(True, None), (False, None)], [(True, "0.weight"), (True, None)], [(False, None), (False, None)]]


def test_the_layer_before_is_found_by_order_or_number_or_not_at_all():
    assert layer_before(LeakageLeNet(4, 3, 8, norm="batch"), "norm1", 12) == "conv1.weight"
    resnet = CifarResNet18(4, 3, width=4)
    assert layer_before(resnet, "norm", 4) == "stem.weight"
    assert layer_before(resnet, "blocks.1.norm2", 4) == "blocks.1.conv2.weight"
    assert layer_before(resnet, "blocks.2.shortcut.1", 8) == "blocks.2.shortcut.0.weight"
    assert layer_before(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "1", 4) is None
    odd = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4)})
    assert layer_before(odd, "norm", 4) is None


def test_dead_channels_of_a_paper_lock_show_in_the_shared_gradient(batch):
    torch.manual_seed(1)
    net = LeakageLeNet(4, 3, 8, norm="batch")
    protect(net, activation="relu", key_distribution="uniform")
    view = leakage_view(net)
    target = target_of(view.network, (3, 8, 8), 4, view.secrets, draw_secrets=view.draw_secrets, lock=view.lock)
    update = share_update(view.network, *batch, withheld=view.secrets)
    dead = dead_channels(target, update)["norm1.weight"]
    assert torch.equal(dead, net.norm1.scale_and_shift()[0] == 0) and 0 < dead.sum() < 12


def test_attacks_that_know_the_defence_run_on_a_view(batch):
    torch.manual_seed(1)
    net = LeakageLeNet(4, 3, 8, norm="batch", width=4)
    protect(net, key_length=16)
    view = leakage_view(net)
    target = target_of(view.network, (3, 8, 8), 4, view.secrets, draw_secrets=view.draw_secrets, lock=view.lock)
    update = share_update(view.network, batch[0][:1], batch[1][:1], withheld=view.secrets)
    few = DeepLeakage(evaluations=20, restarts=1)
    for attack in (JointOptimisation(few), KnownLock(few)):
        found = attack.reconstruct(target, update, 0)
        assert set(found.secrets) == set(view.secrets) and found.pictures.shape == (1, 3, 8, 8)


def test_a_lightning_module_in_a_run_can_be_viewed(make, run):
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            view = leakage_view(pl_module)
            ours, theirs = view.network.eval().logits(args[1]), copy.deepcopy(pl_module).eval().logits(args[1])
            seen["same"] = torch.allclose(ours, theirs, atol=1e-6)
            seen["secrets"] = sorted(view.secrets)

    run(make(), KeyLock(key_length=8), Look(), limit_train_batches=1)
    assert seen == {"same": True, "secrets": ["network.conv1.1.bias", "network.conv1.1.weight"]}
