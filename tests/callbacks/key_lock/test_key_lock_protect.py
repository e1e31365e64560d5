"""Locks without Lightning: sharing, keeping, restoring, changing keys."""

import copy
import stat
import warnings

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.key_lock.keeping import private_values
from lightning_privacy.callbacks.key_lock.protect import (
    keep_secrets,
    load_shared_state_dict,
    protect,
    restore_secrets,
    rotate_key,
    shared_gradients,
    shared_state_dict,
)
from lightning_privacy.errors import InputError
from lightning_privacy.secrets import KeyVault, find_secrets

KEY = 64


def _step(net, batch):
    net.zero_grad()
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad


def test_two_clients_train_share_average_and_go_on(net, batch):
    clients = [copy.deepcopy(net), copy.deepcopy(net)]
    for client in clients:
        protect(client, "all", key_length=KEY)
        _step(client, batch)
    locks = [{n: v.clone() for n, v in private_values(c).items()} for c in clients]
    assert not torch.equal(locks[0]["1/key"], locks[1]["1/key"])
    sent = [shared_state_dict(c) for c in clients]
    assert not any("secret" in n or n in ("1.weight", "4.bias") for n in sent[0])
    mean = {n: (sent[0][n].float() + sent[1][n].float()) / 2 for n in sent[0]}
    for client, lock in zip(clients, locks, strict=True):
        load_shared_state_dict(client, mean)
        torch.testing.assert_close(client[0].weight.detach(), mean["0.weight"])
        assert all(torch.equal(v, lock[n]) for n, v in private_values(client).items())


def test_what_is_sent_must_be_what_is_shared(net):
    protect(net, key_length=KEY)
    state = shared_state_dict(net)
    for wrong in (state | {"1.weight": torch.ones(4)}, {n: v for n, v in state.items() if n != "1.running_mean"}):
        with pytest.raises(InputError, match=r"1\.(weight|running_mean)"):
            load_shared_state_dict(net, wrong)


def test_a_tied_weight_is_not_shared(net):
    protect(net, key_length=KEY)
    net.tied = nn.Linear(KEY, 4)
    net.tied.weight = net[1].secret.scale_weight
    with pytest.raises(InputError, match=r"tied\.weight"):
        shared_state_dict(net)


def test_shared_gradients_have_none_of_the_lock(net, batch):
    protect(net, key_length=KEY)
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    shared = shared_gradients(net)
    assert "0.weight" in shared and not any(name.startswith("1.") for name in shared)
    assert find_secrets({"shared": shared}, {"key": net[1].secret.key}) == []
    everything = {n: p.grad for n, p in net.named_parameters()}
    assert find_secrets({"all": everything}, {"key": net[1].secret.key}) != []


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("chain", [False, True])
def test_a_refitted_new_key_leaves_the_function_and_forgets_the_old_key(net, batch, activation, chain):
    protect(net, "all", key_length=KEY, activation=activation, chain=chain)
    _step(net, batch)
    net.eval()
    before, old = net(batch[0]), net[1].secret.key.clone()
    assert rotate_key(net, refit=True)
    torch.testing.assert_close(net(batch[0]), before, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(net[1].secret.key, old).any()


def test_by_default_our_lock_is_refitted_and_the_paper_s_says_that_the_function_changes(net, batch):
    twin = copy.deepcopy(net).eval()
    protect(net.eval(), key_length=KEY)
    before = net(batch[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rotate_key(net)
    torch.testing.assert_close(net(batch[0]), before, rtol=1e-4, atol=1e-5)
    protect(twin, key_length=KEY, activation="relu", key_distribution="uniform")
    before = torch.cat(twin[1].scale_and_shift())
    with pytest.warns(UserWarning, match="computes something else"):
        assert not rotate_key(twin)
    assert (torch.cat(twin[1].scale_and_shift()) - before).abs().max() > 0.02


def test_a_module_without_locks_or_a_locked_one_has_no_key_to_change(net):
    with pytest.raises(InputError, match="no key-locked layer"):
        rotate_key(net)
    protect(net, key_length=KEY)
    net[1].secret.lock()
    with pytest.raises(InputError, match="are locked"):
        rotate_key(net)


def test_keys_come_from_the_vault_and_are_known_to_the_scan(net, vault):
    key = f"vault:{vault.path}#alice"
    twin = copy.deepcopy(net)
    protect(net, "all", key=key, site="one", key_length=KEY)
    protect(twin, "all", key=key, site="two", key_length=KEY)
    assert torch.equal(vault.tensor("one/1"), net[1].secret.key) and torch.equal(
        vault.tensor("one/4"), net[4].secret.key
    )
    keys = [net[1].secret.key, net[4].secret.key, twin[1].secret.key]
    assert not any(torch.isclose(a, b).all() for i, a in enumerate(keys) for b in keys[:i])
    assert {str(f).partition("`")[2].partition("`")[0] for f in find_secrets({"k": keys[0]}, vault)} == {"one/1"}


def test_one_key_serves_one_lock_or_a_chain(net, vault):
    vault.put_key("single", KEY, "normal")
    key = f"vault:{vault.path}#single"
    twin, wrong = copy.deepcopy(net), copy.deepcopy(net)
    protect(twin, "all", key=key, key_length=KEY, chain=True)
    assert torch.equal(twin[1].secret.key, vault.tensor("single"))
    with pytest.raises(InputError, match="One key is given for 2 locks"):
        protect(wrong, "all", key=key, key_length=KEY)
    with pytest.raises(InputError, match="64 real numbers|8 real numbers"):
        protect(net, key=key, key_length=8)


def test_a_vault_is_made_where_there_is_none(net, tmp_path):
    protect(net, key=f"vault:{tmp_path / 'new.safetensors'}#alice", key_length=KEY)
    assert KeyVault(tmp_path / "new.safetensors").kind("alice") == "master"
    assert stat.S_IMODE((tmp_path / "new.safetensors").stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["open sesame", "env:KEY"])
def test_what_is_no_reference_to_a_vault_is_refused_without_being_repeated(net, key):
    with pytest.raises(InputError) as refused:
        protect(net, key=key)
    assert "sesame" not in str(refused.value)


def test_secrets_are_kept_privately_and_restored(net, batch, vault):
    protect(net, "all", key_length=KEY)
    mark = keep_secrets(net, vault)
    values, before = {n: v.clone() for n, v in private_values(net).items()}, net.eval()(batch[0])
    folder = vault.path.with_name("keys.safetensors.states")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and mark[:16] in file.name
    assert keep_secrets(net, vault) == mark and len(list(folder.iterdir())) == 1
    for _, layer in ((1, net[1]), (4, net[4])):
        layer.secret.lock()
    assert not torch.allclose(net(batch[0]), before, atol=1e-2)
    restore_secrets(net, vault, mark)
    assert torch.equal(net(batch[0]), before)
    assert all(torch.equal(v, values[n]) for n, v in private_values(net).items())
    with pytest.raises(InputError, match=r"scale and shift of 1, 4 are lost"):
        restore_secrets(net, folder, "0" * 64)
    other = nn.Sequential(nn.LayerNorm(4))
    protect(other, key_length=KEY)
    with pytest.raises(InputError, match="state that belongs to this model"):
        restore_secrets(other, vault, mark)
