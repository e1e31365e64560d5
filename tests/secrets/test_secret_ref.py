"""References name a secret's place, and nothing but the place is ever shown."""

import contextlib
import copy
import io
import json
import pickle

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import SecretRef

VALUE = "hunter2-the-value"


class Lock:
    def __init__(self, key: SecretRef, more: list[SecretRef] | None = None, other: SecretRef | None = None):
        """A class of a configuration.

        Args:
            key: The key.
            more: More of them.
            other: Or none.
        """
        self.key, self.more, self.other = key, more, other


def _parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Lock, "lock")
    parser.add_argument("--config", action="config")
    return parser


def test_it_is_read_when_asked_and_not_before(vault, monkeypatch):
    monkeypatch.setenv("SOME_SECRET", VALUE)
    text, tensor = SecretRef(f"vault:{vault.path}#prompt"), SecretRef(f"vault:{vault.path}#lock/key")
    variable = SecretRef("env:SOME_SECRET")
    vault.put_all({"prompt": "a text", "lock/key": torch.arange(8.0)})
    assert (text.vault_path, text.entry, variable.vault_path, variable.entry) == (
        vault.path,
        "prompt",
        None,
        "SOME_SECRET",
    )
    assert text.resolve() == text.resolve_text() == "a text"
    assert torch.equal(tensor.resolve(), torch.arange(8.0))
    assert variable.resolve() == VALUE
    for shown in (repr(variable), str(variable), f"{variable!r}", json.dumps([variable]), yaml.dump(str(variable))):
        assert VALUE not in shown and "SOME_SECRET" in shown
    with pytest.raises(InputError, match="is a tensor, and a text"):
        tensor.resolve_text()


def test_a_path_may_hold_the_separators(tmp_path):
    ref = SecretRef(f"vault:{tmp_path}/a#b:c/keys#name")
    assert str(ref.vault_path) == f"{tmp_path}/a#b:c/keys" and ref.entry == "name"


@pytest.mark.parametrize(
    "text", [VALUE, "", "env:", "env:two words", "env:9X", "vault:x", "vault:#x", "vault:x#", "ENV:X"]
)
def test_what_is_no_reference_is_refused_without_being_repeated(text):
    with pytest.raises(InputError, match="vault:PATH#NAME") as error:
        SecretRef(text)
    assert not text or f" {text} " not in f" {error.value} "
    assert VALUE not in str(error.value)


def test_an_absent_place_is_named(vault, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    for ref, says in (
        ("env:NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
        ("env:EMPTY", "EMPTY is not set"),
        (f"vault:{vault.path}#none", "holds no `none`"),
        ("vault:no/where#none", "There is no vault no/where"),
    ):
        with pytest.raises(InputError, match=says):
            SecretRef(ref).resolve()


def test_a_configuration_dumps_the_reference_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_SECRET", VALUE)
    parser = _parser()
    file = tmp_path / "config.yaml"
    file.write_text("lock: {key: 'vault:keys.safetensors#lock/key', more: ['env:SOME_SECRET', 'env:B']}")
    for arguments in (
        ["--lock.key=vault:keys.safetensors#lock/key", "--lock.more=[env:SOME_SECRET, env:B]"],
        [f"--config={file}"],
    ):
        chosen = parser.parse_args(arguments)
        chosen.pop("config", None)
        assert isinstance(chosen.lock.key, SecretRef) and isinstance(chosen.lock.more[0], SecretRef)
        dumped = parser.dump(chosen)
        assert yaml.safe_load(dumped)["lock"] == {
            "key": "vault:keys.safetensors#lock/key",
            "more": ["env:SOME_SECRET", "env:B"],
        }
        (tmp_path / "dumped.yaml").write_text(dumped)
        lock = Lock(**parser.parse_args([f"--config={tmp_path / 'dumped.yaml'}"]).lock)
        assert lock.key.entry == "lock/key" and lock.more[0].resolve() == VALUE
        assert VALUE not in dumped + repr(chosen)


def test_a_value_in_a_configuration_is_refused_when_used_and_shown_nowhere():
    parser, out = _parser(), io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        chosen = parser.parse_args([f"--lock.key={VALUE}", f"--lock.other={VALUE}", f"--lock.more=[{VALUE}]"])
    assert VALUE not in parser.dump(chosen) + repr(chosen) + out.getvalue()
    for ref in (chosen.lock.key, chosen.lock.other, chosen.lock.more[0]):
        with pytest.raises(InputError, match="A secret was written into the configuration"):
            ref.resolve()


def test_copies_and_pickles_are_references_still():
    ref = SecretRef("env:NAME")
    for twin in (copy.deepcopy(ref), copy.copy(ref), pickle.loads(pickle.dumps(ref))):
        assert twin == ref and isinstance(twin, SecretRef)
