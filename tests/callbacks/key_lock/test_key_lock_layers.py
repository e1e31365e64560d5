"""Wrapped normalisation layers: what they compute, what leaves them, and what becomes of them elsewhere."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.key_lock.keeping import private_values
from lightning_privacy.callbacks.key_lock.layers import KeyLockedNorm, PrivateAffineNorm
from lightning_privacy.callbacks.key_lock.protect import protect
from lightning_privacy.callbacks.key_lock.start import start_locks
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.secrets import exposed_secrets, find_secrets

NORMS = [
    (nn.BatchNorm1d(4), (6, 4)),
    (nn.BatchNorm1d(4), (6, 4, 5)),
    (nn.BatchNorm2d(4, affine=False), (6, 4, 5, 5)),
    (nn.BatchNorm3d(4, track_running_stats=False), (3, 4, 2, 3, 2)),
    (nn.GroupNorm(2, 4), (3, 4, 5, 5)),
    (nn.LayerNorm(5), (3, 4, 5)),
    (nn.LayerNorm((4, 5), bias=False), (3, 4, 5)),
    (nn.InstanceNorm1d(4), (3, 4, 6)),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (3, 4, 6, 6)),
    (nn.InstanceNorm2d(4, affine=True), (4, 6, 6)),
]


def _trained(norm):
    """A copy whose scale and shift are anything, negative and zero included."""
    norm = copy.deepcopy(norm)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn(p.shape))
            p.flatten()[0] = 0
    return norm


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("norm", "shape"), NORMS)
@pytest.mark.parametrize("private", [False, True])
def test_a_private_layer_starts_as_the_layer_was(norm, shape, mode, private):
    plain = nn.Sequential(_trained(norm)).train(mode == "train")
    twin = copy.deepcopy(plain)
    if private:
        twin[0] = PrivateAffineNorm(twin[0])
    else:
        protect(twin, key_length=32)
    for _ in range(2):
        x = torch.randn(shape) * 3 + 1
        torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-5)
    assert twin[0].training == plain[0].training
    kept = {k: v for k, v in plain.state_dict().items() if not k.endswith(("weight", "bias"))}
    assert list(twin.state_dict()) == list(kept)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, kept[name])


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_paper_lock_is_its_equation(net, batch, activation):
    twin = copy.deepcopy(net)
    protect(twin, activation=activation, key_distribution="uniform")
    lock, x = twin[1].secret, net[0](batch[0])
    phi = {"relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    scale = phi(lock.scale_weight @ lock.key + lock.scale_bias)[:, None, None]
    shift = phi(lock.shift_weight @ lock.key + lock.shift_bias)[:, None, None]
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(twin[1](x), scale * (x - mean) / (var + 1e-5).sqrt() + shift, rtol=1e-4, atol=1e-5)


def test_chained_locks_take_the_scale_and_shift_before_them_for_keys(net, batch):
    protect(net, "all", activation="relu", chain=True)
    first, second = net[1], net[4]
    assert second.previous is first and second.secret.key is None and second.secret.key_length == 4
    scale, shift = first.scale_and_shift()
    lock = second.secret
    torch.testing.assert_close(
        second.scale_and_shift()[0], torch.relu(lock.scale_weight @ scale + lock.scale_bias), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        second.scale_and_shift()[1], torch.relu(lock.shift_weight @ shift + lock.shift_bias), rtol=1e-5, atol=1e-6
    )
    twin = copy.deepcopy(net)
    assert twin[4].previous is twin[1] and torch.equal(twin(batch[0]), net(batch[0]))
    back = pickle.loads(pickle.dumps(net))
    assert back[4].previous is back[1] and back[4].is_locked


def test_nothing_secret_is_in_state_dicts_files_and_print_outs_and_loading_is_strict(net, batch):
    protect(net, "all", key_length=64)
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    secrets = {n: v.clone() for n, v in private_values(net).items() if "offset" not in n}
    torch.save(net, whole := io.BytesIO())
    torch.save(net.state_dict(), weights := io.BytesIO())
    assert find_secrets({"whole": whole.getvalue(), "weights": weights.getvalue(), "text": repr(net)}, secrets) == []
    assert exposed_secrets(net) == []
    other = pickle.loads(pickle.dumps(net))
    assert other[1].is_locked and other[4].is_locked
    assert other.load_state_dict(net.state_dict(), strict=True)
    assert other[1].is_locked
    assert not torch.allclose(other(batch[0]), net(batch[0]), atol=1e-2)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"1\.weight"'):
        net.load_state_dict(net.state_dict() | {"1.weight": torch.ones(4)})
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean"):
        net.load_state_dict({k: v for k, v in net.state_dict().items() if "running_mean" not in k})


def test_a_plain_network_takes_what_a_locked_one_shares(net):
    plain = copy.deepcopy(net)
    plain[1] = nn.BatchNorm2d(4, affine=False)
    protect(net)
    net[1].norm.running_mean += 1
    assert plain.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(plain[1].running_mean, torch.ones(4))
    net[1].norm.running_mean -= 1
    net.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(net[1].norm.running_mean, torch.ones(4))


def test_conversion_to_synchronised_batch_normalisation_reaches_the_inner_layer_and_the_lock_survives(net):
    protect(net)
    secrets = {n: v.clone() for n, v in private_values(net).items()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[1], KeyLockedNorm) and isinstance(converted[1].norm, nn.SyncBatchNorm)
    assert converted[1].norm.weight is None and not converted[1].is_locked
    assert all(torch.equal(v, secrets[n]) for n, v in private_values(converted).items())
    assert "1.running_mean" in converted.state_dict()


def test_the_lock_computes_in_single_precision_under_autocast(net, batch):
    protect(net)
    with torch.autocast("cpu", torch.bfloat16):
        scale, _ = net[1].scale_and_shift()
        out = net(batch[0])
    assert scale.dtype == torch.float32 and out.dtype == torch.bfloat16
    torch.testing.assert_close(scale, torch.ones(4), rtol=1e-6, atol=0)


def test_a_whole_model_in_double_precision_is_locked_in_it(net, batch):
    net.double()
    before = net(batch[0].double())
    protect(net)
    assert net[1].secret.scale_weight.dtype == torch.float64
    torch.testing.assert_close(net(batch[0].double()), before, rtol=1e-5, atol=1e-6)


def test_hooks_on_the_layer_see_what_they_saw(net, batch):
    seen = []
    handle = net[1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        net[1].weight.fill_(2.0)
    out = net[:2](batch[0])
    protect(net)
    net(batch[0])
    torch.testing.assert_close(seen[1], out)
    handle.remove()
    net(batch[0])
    assert len(seen) == 2


def test_a_layer_at_two_places_is_one_locked_layer():
    shared = nn.LayerNorm(4)
    net = nn.Sequential(shared, nn.Linear(4, 4), shared)
    protect(net, "all")
    assert net[0] is net[2] and isinstance(net[0], KeyLockedNorm)


def test_the_start_is_secret_where_it_is_spread(net):
    protect(net, spread=0.5)
    scale, shift = net[1].scale_and_shift()
    assert (scale > 0).all() and 0.02 < (scale - 1).abs().mean() < 1 and 0.1 < shift.abs().mean() < 1.5


def test_lock_weights_are_as_secret_as_the_key_unless_a_seed_makes_them_public(net):
    def weights(key, **how):
        twin = copy.deepcopy(net)
        twin[1] = KeyLockedNorm(twin[1], 8, "relu", "uniform")
        start_locks(twin, key, **how)
        return twin[1].secret.scale_weight

    one, other = bytes(range(32)), bytes(32)
    assert torch.equal(weights(one), weights(one)) and not torch.equal(weights(one), weights(other))
    assert torch.equal(weights(one, lock_seed=0), weights(other, lock_seed=0))


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        ("none_such", NoEffectError, "none_such"),
        ("0", NoEffectError, "can become a KeyLockedNorm"),
        ([], InputError, "names nothing"),
        ([""], InputError, "names nothing"),
    ],
)
def test_a_choice_that_hits_no_normalisation_layer_is_an_error(net, layers, error, says):
    with pytest.raises(error, match=says):
        protect(net, layers)


def test_a_module_without_normalisation_layers_is_refused():
    for layers in ("first", "all"):
        with pytest.raises(NoEffectError, match="has none"):
            protect(nn.Sequential(nn.Linear(2, 2)), layers)
    with pytest.raises(InputError, match="does not know its channels"):
        protect(nn.Sequential(nn.LazyBatchNorm2d()))


def test_protecting_again_changes_nothing_and_another_choice_is_refused(net):
    assert protect(net) == ["1"]
    secrets = {n: v.clone() for n, v in private_values(net).items()}
    assert protect(net) == ["1"]
    assert all(torch.equal(v, secrets[n]) for n, v in private_values(net).items())
    with pytest.raises(InputError, match="build a new module"):
        protect(net, "all")
    assert isinstance(net[4], nn.GroupNorm)
    net[4] = PrivateAffineNorm(net[4])
    with pytest.raises(InputError, match="of another kind"):
        protect(net)
