"""The two defences in Lightning runs: what is written, what is found again, and what is said where something is lost."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.key_lock.keeping import private_values
from lightning_privacy.callbacks.key_lock.private_affine import PrivateAffine
from lightning_privacy.callbacks.key_lock.protect import protect
from lightning_privacy.cli.main import main
from lightning_privacy.core import registry
from lightning_privacy.core.manifest import load_defended, read_manifest
from lightning_privacy.errors import DefenceConflictError, InputError, NoEffectError, WrongKeyError
from lightning_privacy.secrets import KeyVault, find_secrets
from lightning_privacy.secrets.fingerprint import matches_fingerprint
from lightning_privacy.testing.fitting import quiet, trainer
from lightning_privacy.testing.settings import plain_images

KEY = 64
# Not every run that continues here writes checkpoints of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    both = {"key_lock": KeyLock, "private_affine": PrivateAffine}
    monkeypatch.setattr(registry.DEFENCES, "_targets", {**registry.DEFENCES._targets, **both})


@pytest.fixture
def ref(vault):
    return f"vault:{vault.path}#alice"


def _saver(folder, **how):
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, **how)


def _values(module):
    return {n: v.detach().clone() for n, v in private_values(module).items()}


def _equal(one, other):
    return set(one) == set(other) and all(torch.equal(v, other[n]) for n, v in one.items())


def _states(vault):
    return Path(f"{vault.path}.states")


def test_locks_train_and_no_file_of_the_run_holds_them(make, run, ref, vault, tmp_path, capsys):
    module = make()
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), 0.01)
    ckpts = tmp_path / "run" / "checkpoints"
    savers = _saver(ckpts / "whole"), ModelCheckpoint(ckpts / "weights", "weights", save_weights_only=True)
    fitted = run(module, KeyLock("all", ref, key_length=KEY), *savers, enable_checkpointing=True, limit_train_batches=1)
    scale, shift = module.scores.scale_and_shift()
    assert (scale != 1).all() and (shift != 0).all()
    module.trainer = None
    torch.save(module.network, ckpts / "network.pt")
    assert {p.name for p in ckpts.rglob("*.*t")} == {"step=1.ckpt", "weights.ckpt", "network.pt"}
    (own,) = (KeyVault(p).secrets() for p in _states(vault).glob("optimizer-*"))
    # Squared gradients are so small that half precision makes zeros of them, which stand everywhere.
    vault.put_all({n: v for n, v in own.items() if n.endswith("weight/exp_avg")})
    vault.put_all({f"lock/{n}": v for n, v in _values(module).items() if n.endswith(("key", "weight"))})
    capsys.readouterr()
    assert main(["audit-secrets", str(tmp_path / "run"), "--vault", str(vault.path)]) == 0, capsys.readouterr().out
    momentum = fitted.trainer.optimizers[0].state_dict()["state"]
    assert any("proportional" in f.form for f in find_secrets(momentum, {"key": module.scores.secret.key}))


def test_a_checkpoint_names_fingerprints_alone(make, run, ref, vault, tmp_path):
    defence = KeyLock(key=ref, key_length=KEY)
    run(make(), defence, _saver(tmp_path / "c"), enable_checkpointing=True, limit_train_batches=1)
    saved = torch.load(tmp_path / "c" / "step=1.ckpt", weights_only=True)
    entry = read_manifest(saved)["defences"]["key_lock"]
    key, _, layers = entry["key_fingerprint"].partition("/")
    assert vault.matches("alice", key) and matches_fingerprint(vault.tensor("alice"), key)
    assert (_states(vault) / f"layers-{layers[:16]}.safetensors").exists()
    assert entry["init_args"]["key"] == ref and saved["callbacks"]["defence:key_lock"]["key"] == key
    assert find_secrets({"callback": pickle.dumps(defence), "said": repr(defence), "saved": saved}, vault) == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("kind", ["key_lock", "chained", "private_affine"])
def test_a_resumed_run_is_the_uninterrupted_one(make, run, ref, tmp_path, kind, optimizer):
    def build():
        if kind == "private_affine":
            return PrivateAffine("all", str(tmp_path / "private"))
        how = {"chain": True, "activation": "sigmoid"} if kind == "chained" else {"fresh_key": "each_epoch"}
        return KeyLock("all", ref, key_length=KEY, **how)

    def module():
        made = make()
        how = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        made.configure_optimizers = lambda: optimizer(made.parameters(), 0.05, **how)
        return made

    through, resumed = module(), module()
    how = {"max_epochs": 3, "limit_train_batches": 2}
    run(through, build(), _saver(tmp_path / "c"), enable_checkpointing=True, **how)
    run(resumed, build(), ckpt_path=tmp_path / "c" / "step=4.ckpt", seed=5, **how)
    assert _equal(_values(through), _values(resumed))
    assert _equal(through.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_loaded_model_is_locked_without_the_vault_and_whole_with_it(make, run, ref, vault, tmp_path, weights_only):
    module = make()
    saver = _saver(tmp_path / "c", save_weights_only=weights_only)
    run(module, KeyLock("all", ref, key_length=KEY), saver, enable_checkpointing=True, limit_train_batches=3)
    last = tmp_path / "c" / "step=3.ckpt"
    for given in (None, KeyVault(vault.path), vault.path, str(_states(vault))):
        loaded = load_defended(make(), last, vault=given)
        assert loaded.scores.is_locked == (given is None) and _equal(loaded.state_dict(), module.state_dict())
        assert _equal(_values(loaded), _values(module)) == (given is not None)
    early = load_defended(make(), tmp_path / "c" / "step=1.ckpt", vault=vault)
    assert not early.scores.is_locked and not _equal(_values(early), _values(module))


def test_a_private_affine_layer_is_locked_without_its_folder(make, run, tmp_path):
    module, folder = make(), tmp_path / "private"
    run(module, PrivateAffine(private=str(folder)), _saver(tmp_path / "c"), enable_checkpointing=True)
    last = max((tmp_path / "c").iterdir(), key=lambda p: int(p.stem.partition("=")[2]))
    assert load_defended(make(), last).network.conv1[1].is_locked
    loaded = load_defended(make(), last, vault=folder)
    assert _equal(_values(loaded), _values(module))


def test_another_key_is_told_from_the_right_one_by_fingerprints(make, run, ref, vault, tmp_path):
    run(
        make(),
        KeyLock(key=ref, key_length=KEY),
        _saver(tmp_path / "c"),
        enable_checkpointing=True,
        limit_train_batches=1,
    )
    path = tmp_path / "c" / "step=1.ckpt"
    other = KeyVault.create(tmp_path / "bob.safetensors")
    other.put_master("alice")
    said = []
    with pytest.raises(WrongKeyError) as wrong:
        load_defended(make(), path, vault=other)
    said.append(str(wrong.value))
    with pytest.raises(WrongKeyError) as wrong:
        run(make(), KeyLock(key=f"vault:{other.path}#alice", key_length=KEY), ckpt_path=path)
    said.append(str(wrong.value))
    locked = make()
    protect(locked, key=f"vault:{other.path}#alice", key_length=KEY)
    with pytest.raises(WrongKeyError) as wrong:
        run(locked, KeyLock(key=ref, key_length=KEY))
    said.append(str(wrong.value))
    assert all("fingerprint" in text for text in said)
    for holder in (vault, other):
        assert find_secrets(said, holder) == []


def test_what_is_lost_is_said_once_and_plainly(make, run, ref, vault, tmp_path):
    run(
        make(),
        KeyLock(key=ref, key_length=KEY),
        _saver(tmp_path / "c"),
        enable_checkpointing=True,
        limit_train_batches=2,
    )
    path = tmp_path / "c" / "step=1.ckpt"
    with pytest.raises(
        InputError, match=r"holds neither scale nor shift of network\.conv1\.1.*they are lost.*Name the place"
    ):
        run(make(), KeyLock(key_length=KEY), ckpt_path=path)
    for file in _states(vault).glob("optimizer-*"):
        file.unlink()
    with pytest.raises(InputError, match="optimizer's memory of the private layers"):
        run(make(), KeyLock(key=ref, key_length=KEY), ckpt_path=path)
    for file in _states(vault).glob("layers-*"):
        file.unlink()
    with pytest.raises(InputError, match=r"scale and shift of network\.conv1\.1 are lost"):
        run(make(), KeyLock(key=ref, key_length=KEY), ckpt_path=path)
    with pytest.raises(InputError, match=r"scale and shift of network\.conv1\.1 are lost"):
        load_defended(make(), path, vault=vault)
    vault.path.unlink()
    with pytest.raises(InputError, match="There is no vault"):
        load_defended(make(), path, vault=KeyVault(vault.path))


def test_without_a_vault_the_run_says_so_once_and_writes_no_secret(make, run, tmp_path, monkeypatch):
    said, module = [], make()
    monkeypatch.setattr("lightning_privacy.callbacks.key_lock.custody.rank_zero_info", said.append)
    fitted = run(
        module, KeyLock(key_length=KEY), _saver(tmp_path / "c"), enable_checkpointing=True, limit_train_batches=2
    )
    assert len(said) == 1 and "no checkpoint of the run can be continued or used" in said[0]
    secrets = {n: v for n, v in _values(module).items() if "offset" not in n}
    assert find_secrets(tmp_path / "c", secrets) == []
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(InputError, match="was never kept"):
        load_defended(make(), tmp_path / "c" / "step=2.ckpt", vault=tmp_path)
    with quiet():  # its own last checkpoint is of the lock that it still has; an earlier one is not
        fitted.trainer.validate(
            module, plain_images(8), ckpt_path=tmp_path / "c" / "step=2.ckpt", verbose=False, weights_only=True
        )
        with pytest.raises(InputError, match="they are lost"):
            fitted.trainer.validate(
                module, plain_images(8), ckpt_path=tmp_path / "c" / "step=1.ckpt", verbose=False, weights_only=True
            )


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_new_process_validates_from_a_checkpoint(make, run, ref, tmp_path, weights_only):
    module = make()
    saver = _saver(tmp_path / "c", save_weights_only=weights_only)
    run(module, KeyLock(key=ref, key_length=KEY), saver, enable_checkpointing=True, limit_train_batches=2)
    other = make()
    with quiet():
        trainer(tmp_path, [KeyLock(key=ref, key_length=KEY)]).validate(
            other, plain_images(8), ckpt_path=tmp_path / "c" / "step=2.ckpt", verbose=False, weights_only=True
        )
    assert _equal(_values(other), _values(module))


def test_a_new_trainer_goes_on_with_the_lock_of_the_round_before(make, run, ref):
    module = make()
    run(module, KeyLock(key=ref, key_length=KEY), limit_train_batches=2)
    before = _values(module)
    run(module, KeyLock(key=ref, key_length=KEY), limit_train_batches=2, max_epochs=0)
    assert _equal(_values(module), before)
    run(module, KeyLock(key=ref, key_length=KEY), limit_train_batches=2)
    assert torch.equal(_values(module)["network.conv1.1/key"], before["network.conv1.1/key"])
    assert not torch.equal(_values(module)["network.conv1.1/scale_bias"], before["network.conv1.1/scale_bias"])


def test_a_locked_module_is_not_trained(make, run, ref):
    module = make()
    run(module, KeyLock(key=ref, key_length=KEY), limit_train_batches=1)
    module.trainer = None
    with pytest.raises(InputError, match="are locked: random numbers"):
        run(pickle.loads(pickle.dumps(module)), KeyLock(key=ref, key_length=KEY))


@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_fresh_keys_keep_our_function_and_change_the_paper_s(make, run, ref, vault, activation):
    module = make()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
    run(module, KeyLock(key=ref, key_length=KEY, activation=activation, fresh_key="each_epoch"), max_epochs=1)
    before, first = module.network.conv1[1].scale_and_shift(), module.network.conv1[1].secret.key.clone()
    again = make()
    again.configure_optimizers = lambda: torch.optim.SGD(again.parameters(), 0.0)
    run(again, KeyLock(key=ref, key_length=KEY, activation=activation, fresh_key="each_epoch"), max_epochs=3)
    lock = again.network.conv1[1]
    assert not torch.isclose(lock.secret.key, first).any()
    assert torch.equal(vault.tensor("key_lock/network.conv1.1"), lock.secret.key)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(lock.scale_and_shift(), before, strict=True)]
    assert same == [activation == "softplus"] * 2


def test_an_encrypted_vault_s_states_are_encrypted(make, run, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.setenv("LIGHTNING_PRIVACY_PASSPHRASE", "correct horse")
    monkeypatch.setattr(
        "lightning_privacy.secrets.vault_encryption._COST", {"n": 2**4, "r": 8, "p": 1}
    )  # slow on purpose
    vault = KeyVault.create(tmp_path / "keys.safetensors", "correct horse")
    vault.put_master("alice")
    module, ref = make(), f"vault:{vault.path}#alice"
    saver = ModelCheckpoint(tmp_path / "c", "last", save_weights_only=True)
    run(module, KeyLock(key=ref, key_length=KEY), saver, enable_checkpointing=True, limit_train_batches=1)
    assert find_secrets(_states(vault), {n: v for n, v in _values(module).items() if "offset" not in n}) == []
    assert _equal(_values(load_defended(make(), tmp_path / "c" / "last.ckpt", vault=vault)), _values(module))
    monkeypatch.delenv("LIGHTNING_PRIVACY_PASSPHRASE")
    with pytest.raises(InputError, match="is encrypted"):
        load_defended(make(), tmp_path / "c" / "last.ckpt", vault=_states(vault))


def test_the_paper_s_setting_is_the_released_code_s():
    args = KeyLock.paper(layers="all", key_length=8).init_args
    assert {k: args[k] for k in ("activation", "key_distribution", "chain", "lock_seed", "layers", "key_length")} == {
        "activation": "relu",
        "key_distribution": "uniform",
        "chain": True,
        "lock_seed": 0,
        "layers": "all",
        "key_length": 8,
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"key_length": 0}, "at least 1"),
        ({"spread": -1}, "at least 0"),
        ({"layers": []}, "names nothing"),
        ({"site": ""}, "site"),
        ({"key": "open sesame"}, "no reference"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(InputError, match=says) as refused:
        KeyLock(**settings)
    assert "sesame" not in str(refused.value)


def test_nothing_to_lock_averaged_weights_and_two_of_a_kind_are_refused(make, run, ref):
    with pytest.raises(NoEffectError, match="has none"):
        run(make(norm=False), KeyLock(key=ref))
    with pytest.raises(NoEffectError, match="nowhere"):
        run(make(), PrivateAffine("nowhere"))
    with pytest.raises(DefenceConflictError, match="a checkpoint would be of two models"):
        run(make(), KeyLock(key=ref), EMAWeightAveraging())
    with pytest.raises(DefenceConflictError, match="ORIGINAL_NORM_LAYERS"):
        run(make(), KeyLock(key=ref), PrivateAffine())


def test_an_undefended_start_is_kept_by_both(make, run, ref):
    starts = []
    for defence in (KeyLock("all", ref, key_length=KEY), PrivateAffine("all")):
        module = make()
        with torch.no_grad():
            for layer in (module.network.conv1[1], module.scores):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        plain = copy.deepcopy(module)
        run(module, defence, max_epochs=0)
        x = torch.rand(3, 4, 8, 8)
        torch.testing.assert_close(module.network.conv1[1](x), plain.network.conv1[1](x), rtol=1e-5, atol=1e-5)
        starts.append(module)
    assert not any(layer.is_locked for m in starts for layer in (m.network.conv1[1], m.scores))
