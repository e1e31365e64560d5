"""The vault: private, whole, redacted, encrypted if asked, and stable in its fingerprints."""

import copy
import os
import pickle
import stat

import pytest
import torch

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import KeyVault, SecretRef, find_secrets
from lightning_privacy.secrets.private_file import write_private

TEXT = 'a photo of sks dog, ünïcode "quoted" and\nsplit'


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_put_in_comes_out_in_another_process_too(vault):
    tensors = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 3).double().t(),
        "whole": torch.arange(4),
        "flag": torch.tensor([True, False]),
        "one": torch.tensor(3.5),
    }
    vault.put_all(tensors | {"prompt": TEXT})
    other = KeyVault(vault.path)
    assert other.names() == sorted([*tensors, "prompt"])
    for name, value in tensors.items():
        assert torch.equal(other.tensor(name), value) and other.tensor(name).dtype == value.dtype
    assert other.text("prompt") == TEXT
    assert set(other.secrets()) == {*tensors, "prompt"}


def test_a_tensor_from_a_vault_is_a_copy(vault):
    vault.put("w", torch.ones(3))
    vault.tensor("w").zero_()
    assert torch.equal(vault.tensor("w"), torch.ones(3))


def test_the_file_is_for_its_owner_alone_whatever_the_mask(tmp_path):
    before = os.umask(0)
    try:
        vault = KeyVault.create(tmp_path / "keys.safetensors")
        assert _mode(vault.path) == 0o600
        os.chmod(vault.path, 0o600)
        vault.put_key("k", 64)
        assert _mode(vault.path) == 0o600
    finally:
        os.umask(before)
    assert [p.name for p in tmp_path.iterdir()] == ["keys.safetensors"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o644])
def test_a_file_that_others_may_read_or_write_is_refused(vault, mode):
    vault.put_key("k", 64)
    vault.path.chmod(mode)
    for reader in (vault, KeyVault(vault.path)):
        with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600.*rotate"):
            reader.tensor("k")
    vault.path.chmod(0o600)
    assert KeyVault(vault.path).names() == ["k"]


def test_a_write_that_fails_leaves_the_old_vault(vault, monkeypatch):
    vault.put_key("k", 64)
    raw = vault.path.read_bytes()

    def cut(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_privacy.secrets.private_file.os.fsync", cut)
    with pytest.raises(InputError, match="No space left"):
        vault.put_key("other", 64)
    assert vault.path.read_bytes() == raw and len(list(vault.path.parent.iterdir())) == 1
    assert KeyVault(vault.path).names() == ["k"]


def test_the_bytes_and_the_folder_are_synced_in_this_order(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        "lightning_privacy.secrets.private_file.os.fsync",
        lambda fd: (synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)), real(fd)),
    )
    write_private(tmp_path / "f", b"content")
    assert synced == [False, True]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda v: v.tensor("none"), "holds no `none`.*It has: key, text"),
        (lambda v: v.tensor("text"), "is a text"),
        (lambda v: v.text("key"), "is a tensor"),
        (lambda v: v.put("key", torch.ones(2)), "already"),
        (lambda v: v.put("a#b", "x"), "without `#`"),
        (lambda v: v.put("", "x"), "no name"),
        (lambda v: v.put("empty", ""), "empty"),
        (lambda v: v.remove("none"), "holds no"),
        (lambda v: v.site_key("key", "conv1", 8), "no master key"),
        (lambda v: v.rotate("text"), "new=..."),
        (lambda v: v.rotate("text", torch.ones(3)), "is a text"),
        (lambda v: KeyVault.create(v.path), "left as it is"),
        (lambda v: KeyVault(v.path.parent / "gone").names(), "There is no vault"),
        (lambda v: KeyVault(v.path.parent).names(), "cannot be read"),
        (lambda v: KeyVault.create(v.path.parent / "no" / "where"), "existing folder"),
        (lambda v: KeyVault(v.path, ""), "empty"),
        (lambda v: v.matches("key", "nonsense"), "no fingerprint"),
    ],
)
def test_refusals_say_what_to_do_and_not_what_is_secret(vault, call, says):
    vault.put("text", TEXT)
    vault.put_key("key", 64, "normal")
    with pytest.raises(InputError, match=says) as error:
        call(vault)
    assert find_secrets({"error": str(error.value), "args": error.value.args}, vault) == []


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: b"PK" + raw, lambda raw: raw[:8] + b"[]" + raw[10:]]
)
def test_a_damaged_file_is_named(vault, damage):
    vault.put_key("k", 64)
    write_private(vault.path, damage(vault.path.read_bytes()))
    with pytest.raises(InputError, match="is no vault, or is damaged"):
        KeyVault(vault.path).names()


def test_a_newer_vault_and_foreign_safetensors_are_refused(vault):
    from safetensors.torch import save

    write_private(vault.path, save({"a": torch.ones(2)}, {"lightning_privacy_vault": '{"version": 99}'}))
    with pytest.raises(InputError, match="version 99.*pip install -U"):
        vault.names()
    write_private(vault.path, save({"a": torch.ones(2)}))
    with pytest.raises(InputError, match="is no vault"):
        vault.names()


def test_another_process_s_change_is_seen(vault):
    other = KeyVault(vault.path)
    vault.put("a", "first text")
    assert other.text("a") == "first text"
    vault.put("a", "other text", replace=True)
    assert other.text("a") == "other text"
    vault.remove("a")
    assert other.names() == []


def test_fingerprints_are_stable_salted_and_tell_secrets_apart(vault, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_privacy.secrets.fingerprint._TEXT_ROUNDS", 1000)
    key = torch.randn(64)
    vault.put_all({"key": key, "same": key.clone(), "other": key + 1, "text": TEXT, "double": key.double()})
    vault.put_all({"a/b": key.view(8, 8)})
    second = KeyVault.create(tmp_path / "second.safetensors")
    second.put_all({"key": key, "text": TEXT})
    prints = {name: vault.fingerprint(name) for name in vault.names()}
    assert prints == {name: KeyVault(vault.path).fingerprint(name) for name in vault.names()}
    assert prints["key"] == prints["same"] and len(set(prints.values())) == len(prints) - 1
    assert second.fingerprint("key") != prints["key"]  # another salt
    assert second.matches("key", prints["key"]) and second.matches("text", prints["text"])
    assert not second.matches("key", prints["other"]) and not vault.matches("text", prints["key"])
    assert find_secrets(prints, vault) == []
    salt, _, digest = prints["key"].partition(":")
    assert len(salt) == 32 and len(digest) == 64


def test_site_keys_are_derived_kept_and_renewed_with_their_master(vault):
    vault.put_master("master")
    kept = vault.put_site_key("conv1/key", "master", "conv1", 64)
    assert torch.equal(vault.tensor("conv1/key"), kept) and torch.equal(vault.site_key("master", "conv1", 64), kept)
    with pytest.raises(InputError, match="derived from `master`"):
        vault.remove("master")
    with pytest.raises(InputError, match="rotate its master `master`"):
        vault.rotate("conv1/key")
    before = vault.fingerprint("master")
    assert vault.rotate("master") == vault.fingerprint("master") != before
    assert not torch.equal(vault.tensor("conv1/key"), kept)
    assert torch.equal(vault.tensor("conv1/key"), vault.site_key("master", "conv1", 64))


def test_rotation_replaces_and_forgets(vault, monkeypatch):
    monkeypatch.setattr("lightning_privacy.secrets.fingerprint._TEXT_ROUNDS", 1000)
    vault.put_key("key", 64, "normal")
    vault.put("text", "the first text")
    old = vault.secrets()
    assert vault.rotate("key") != KeyVault(vault.path).fingerprint("text")
    assert vault.tensor("key").shape == (64,) and not torch.isclose(vault.tensor("key"), old["key"]).any()
    vault.rotate("text", "the second text")
    assert vault.text("text") == "the second text"
    assert find_secrets(vault.path, old) == []
    assert find_secrets(vault.path, vault.secrets())


def test_print_outs_pickles_and_copies_carry_nothing(vault):
    vault.put("text", TEXT)
    vault.put_key("key", 64, "normal")
    vault.names()
    secret = KeyVault(vault.path, "the passphrase")
    assert repr(vault) == f"KeyVault({str(vault.path)!r})"
    secrets = vault.secrets() | {"passphrase": "the passphrase"}
    for holder in (vault, secret):
        raw = pickle.dumps(holder)
        assert find_secrets({"raw": raw, "repr": repr(holder), "dict": repr(vars(holder))}, secrets) == []
    assert pickle.loads(pickle.dumps(vault)).text("text") == TEXT
    with pytest.raises(InputError, match="not pickled"):
        pickle.dumps(secret._passphrase)
    assert copy.deepcopy(secret)._passphrase is secret._passphrase


def test_without_the_package_a_passphrase_is_refused_with_the_extra_s_name(tmp_path, monkeypatch):
    import sys

    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"lightning-privacy\[vault\]"):
        KeyVault.create(tmp_path / "keys.safetensors", "a passphrase")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cheap(monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.setattr("lightning_privacy.secrets.vault_encryption._COST", {"n": 2**10, "r": 8, "p": 1})


def test_an_encrypted_vault_opens_with_its_passphrase_alone(tmp_path, cheap, monkeypatch):
    monkeypatch.setenv("PASS", "correct horse")
    vault = KeyVault.create(tmp_path / "keys.safetensors", SecretRef("env:PASS"))
    vault.put_all({"text": TEXT, "key": torch.randn(64)})
    assert find_secrets({"raw": vault.path.read_bytes()}, vault.secrets()) == []
    assert b"text" not in vault.path.read_bytes()  # names are hidden as well
    assert KeyVault(vault.path, "correct horse").text("text") == TEXT
    with pytest.raises(InputError, match="passphrase does not open"):
        KeyVault(vault.path, "wrong horse").names()
    with pytest.raises(InputError, match="LIGHTNING_PRIVACY_PASSPHRASE"):
        KeyVault(vault.path).names()
    monkeypatch.setenv("LIGHTNING_PRIVACY_PASSPHRASE", "correct horse")
    assert KeyVault(vault.path).text("text") == TEXT
    assert pickle.loads(pickle.dumps(vault)).text("text") == TEXT
    one = vault.fingerprint("key")
    vault.rotate_passphrase("battery staple")
    with pytest.raises(InputError, match="does not open"):
        KeyVault(vault.path, "correct horse").names()
    assert KeyVault(vault.path, "battery staple").fingerprint("key") == one
    vault.rotate_passphrase(None)
    assert KeyVault(vault.path).text("text") == TEXT


def test_a_changed_encrypted_vault_is_refused(tmp_path, cheap):
    vault = KeyVault.create(tmp_path / "keys.safetensors", "correct horse")
    vault.put("text", TEXT)
    raw = vault.path.read_bytes()
    for changed in (raw[:-1] + bytes([raw[-1] ^ 1]), raw.replace(b'\\"r\\": 8', b'\\"r\\": 9')):
        assert changed != raw
        write_private(vault.path, changed)
        with pytest.raises(InputError, match="does not open"):
            KeyVault(vault.path, "correct horse").names()
    write_private(vault.path, raw.replace(b"1024", b"9999999999"[:4]).replace(b'\\"p\\": 1', b'\\"p\\": 9'))
    with pytest.raises(InputError, match="is damaged"):
        KeyVault(vault.path, "correct horse").names()
