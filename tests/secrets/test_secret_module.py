"""What a secret module holds trains, and is in no state dict, pickle, print-out or error."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import (
    SecretModule,
    exposed_secrets,
    find_secrets,
    named_public_parameters,
    named_secret_parameters,
    secret_modules,
)


class Nested(SecretModule):
    def __init__(self, inner):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), inner])
        self.numbers = nn.ParameterList([nn.Parameter(torch.randn(30))])
        self.array = np.random.default_rng(0).normal(size=30)


def _rounds(model):
    """The places where a child may stand."""
    return [
        nn.Sequential(nn.Linear(2, 2), model),
        nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(model)])}),
        Nested(model),
        model,
    ]


def test_secrets_train_like_any_parameter(make_net):
    net = make_net()
    before = copy.deepcopy(net)
    optimizer = net.configure_optimizers()
    net.training_step(next(iter(net.train_dataloader())), 0).backward()
    optimizer.step()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert {"lock.scale.weight", "lock.scale.bias", "lock.shift.weight", "lock.shift.bias"} <= moved


def test_secrets_train_under_automatic_mixed_precision(make_net):
    net = make_net()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.training_step(next(iter(net.train_dataloader())), 0)
    loss.backward()
    assert net.lock.scale.weight.grad is not None and net.lock.scale.weight.grad.abs().sum() > 0


def test_no_state_dict_has_an_entry_for_them(secret_lock):
    for root in _rounds(secret_lock()):
        assert not [name for name in root.state_dict() if not name.startswith("0.")]
        root._save_to_state_dict(straight := {}, "", False)
        assert not straight


@pytest.mark.parametrize("assign", [False, True])
def test_a_strict_load_passes_and_leaves_them_as_they_are(make_net, assign):
    net, other = make_net(), make_net(seed=1)
    before = {name: value.clone() for name, value in net.lock.secret_tensors().items()}
    parameters = dict(net.lock.named_parameters())
    assert net.load_state_dict(other.state_dict(), strict=True, assign=assign)
    assert torch.equal(net.first.weight, other.first.weight)
    assert all(torch.equal(value, before[name]) for name, value in net.lock.secret_tensors().items())
    assert all(p is parameters[n] for n, p in net.lock.named_parameters())


def test_entries_for_them_are_unexpected_and_not_taken(make_net, exposed):
    net, foreign = make_net(), make_net(exposed, seed=1).state_dict()
    before = net.lock.scale.weight.clone()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict(foreign)
    told = net.load_state_dict(foreign, strict=False)
    assert set(told.unexpected_keys) == {f"lock.{n}.{w}" for n in ("scale", "shift") for w in ("weight", "bias")}
    assert not told.missing_keys
    assert torch.equal(net.lock.scale.weight, before)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.lock.load_state_dict(foreign)


def test_a_deep_copy_in_memory_keeps_them_in_memory_of_its_own(make_net):
    net = make_net()
    twin = copy.deepcopy(net)
    assert torch.equal(twin.lock.key, net.lock.key) and torch.equal(twin.lock.scale.weight, net.lock.scale.weight)
    assert twin.lock.key.data_ptr() != net.lock.key.data_ptr()
    assert not twin.lock.is_locked
    x = torch.randn(5, 3)
    assert torch.equal(twin(x), net(x))
    shallow = copy.copy(net.lock)
    assert shallow.key is net.lock.key and not shallow.is_locked


def test_an_averaged_model_averages_them_and_saves_none(make_net):
    net = make_net()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(net)
    start = net.lock.scale.weight.detach().clone()
    with torch.no_grad():
        net.lock.scale.weight += 1
    average.update_parameters(net)
    torch.testing.assert_close(average.module.lock.scale.weight, start + 0.5)
    assert not [name for name in average.state_dict() if "lock" in name]
    average.load_state_dict(average.state_dict(), strict=True)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_drops_them_and_is_locked(make_net, kept, protocol):
    net = make_net()
    net(torch.randn(5, 3))  # leaves gains in plain attributes, with their graph
    secrets = kept(net) | {"gain": net.lock.calls[0].repeat(8) * torch.linspace(1, 2, 32)}
    raw = pickle.dumps(net, protocol)
    assert find_secrets({"pickle": raw}, secrets) == []
    back = pickle.loads(raw)
    assert back.lock.is_locked and not net.lock.is_locked
    assert torch.equal(back.first.weight, net.first.weight)
    here = net.lock.secret_tensors()
    for name, value in back.lock.secret_tensors().items():
        assert value.shape == here[name].shape and value.dtype == here[name].dtype
        assert not torch.isclose(value, here[name]).any()
    assert isinstance(back.lock.scale.weight, nn.Parameter) and back.lock.scale.weight.requires_grad
    assert not torch.isclose(back.lock.calls[0], net.lock.calls[0]).any()
    assert back(torch.randn(5, 3)).shape == (5, 1)


def test_a_saved_model_holds_none_however_deep_they_are(secret_lock):
    lock = secret_lock()
    for root in _rounds(lock):
        outer = root if isinstance(root, Nested) else lock
        secrets = {f"s/{n}": v.clone() for n, v in outer.secret_tensors().items()}
        if isinstance(root, Nested):
            secrets["array"] = torch.from_numpy(root.array)
        torch.save(root, file := io.BytesIO())
        assert find_secrets({"file": file.getvalue()}, secrets) == []
        assert not lock.is_locked


def test_what_is_tied_stays_tied_in_a_pickle(secret_lock):
    lock = secret_lock()
    lock.shift.weight = lock.scale.weight
    back = pickle.loads(pickle.dumps(lock))
    assert back.shift.weight is back.scale.weight


def test_filling_restores_and_unlocks(make_net):
    net = make_net().eval()
    x = torch.randn(5, 3)
    out, secrets = net(x), {n: v.clone() for n, v in net.lock.secret_tensors().items()}
    back = pickle.loads(pickle.dumps(net)).eval()
    assert not torch.allclose(back(x), out)
    back.lock.fill(secrets)
    assert not back.lock.is_locked
    assert torch.equal(back(x), out)


def test_locking_overwrites_everything_in_memory(make_net):
    net = make_net()
    net.training_step(next(iter(net.train_dataloader())), 0).backward()
    before = copy.deepcopy(net.lock.secret_tensors())
    calls = net.lock.calls[0]
    gain = calls.clone()
    net.lock.lock()
    assert net.lock.is_locked
    assert not any(torch.isclose(v, before[n]).any() for n, v in net.lock.secret_tensors().items())
    assert not torch.isclose(calls, gain).any()
    assert all(p.grad is None for p in net.lock.parameters())


def test_two_locked_copies_agree(make_net):
    one, two = make_net(), make_net(seed=1)
    one.lock.lock()
    two.lock.lock()
    assert torch.equal(one.lock.scale.weight, two.lock.scale.weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("key"), "lack .*key"),
        (lambda s: s.update(extra=torch.ones(3)), "no place for .*extra"),
        (lambda s: s.update(key=torch.full((5,), 0.123456)), r"shape \(5,\)"),
    ],
)
def test_a_wrong_filling_changes_nothing_and_names_no_value(secret_lock, change, says):
    lock = secret_lock()
    before = copy.deepcopy(lock.secret_tensors())
    secrets = {n: torch.full_like(v, 0.123456) for n, v in before.items()}
    change(secrets)
    with pytest.raises(InputError, match=says) as error:
        lock.fill(secrets)
    assert "0.123" not in str(error.value)
    assert all(torch.equal(v, before[n]) for n, v in lock.secret_tensors().items())


def test_print_outs_and_errors_show_nothing(make_net, kept, exposed):
    net = make_net()
    texts = [repr(net), str(net.lock), f"{[*net.children()]}"]
    assert "(lock): SecretLock(secret)" in texts[0] and "scale" not in texts[0]
    with pytest.raises(RuntimeError) as wrong_shape:
        net.lock(torch.randn(5, 9))
    with pytest.raises(RuntimeError) as unexpected:
        net.load_state_dict(make_net(exposed).state_dict())
    with pytest.raises(AttributeError) as absent:
        _ = net.lock.no_such
    texts += [str(error.value) for error in (wrong_shape, unexpected, absent)]
    assert find_secrets(texts, kept(net)) == []
    net.lock.lock()
    assert "SecretLock(secret, locked)" in repr(net)


def test_secret_and_public_parameters_are_told_apart(make_net):
    net = make_net()
    secret, public = named_secret_parameters(net), named_public_parameters(net)
    assert set(secret) == {f"lock.{n}.{w}" for n in ("scale", "shift") for w in ("weight", "bias")}
    assert set(secret) | set(public) == {n for n, _ in net.named_parameters()} and not set(secret) & set(public)
    assert [n for n, _ in secret_modules(nn.Sequential(Nested(net.lock), nn.Linear(2, 2)))] == ["0"]


def test_a_weight_tied_to_a_public_layer_is_named(make_net):
    net = make_net()
    assert exposed_secrets(net) == []
    net.tied = nn.Linear(64, 4)
    net.tied.weight = net.lock.scale.weight
    assert exposed_secrets(net) == ["tied.weight"]
