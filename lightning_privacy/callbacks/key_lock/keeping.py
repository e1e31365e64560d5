"""Where a client keeps its private layers: one file of mode 0600 for each state that a checkpoint refers to.

A checkpoint names the fingerprints alone. A state's file is called by its fingerprint, so that any earlier checkpoint finds
the lock and the optimizer's memory that belong to it.
"""

import hashlib
import hmac
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_privacy.callbacks.key_lock.start import private_norms
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.fingerprint import tensor_bytes
from lightning_privacy.secrets.private_file import read_private
from lightning_privacy.secrets.private_states import load_private_states, save_private_states
from lightning_privacy.secrets.secret_ref import PASSPHRASE, SecretRef
from lightning_privacy.secrets.vault import KeyVault
from lightning_privacy.secrets.vault_encryption import is_encrypted

__all__ = [
    "SALT",
    "fetch_layers",
    "fetch_optimizer",
    "fill_layers",
    "keep_layers",
    "keep_optimizer",
    "layers_fingerprint",
    "optimizer_fingerprint",
    "private_values",
    "states_folder",
]

SALT = b"lightning_privacy key_lock"
"""Of fingerprints: fixed, so that resumed runs and all ranks make the same; what is hashed cannot be guessed whole."""


def private_values(module: nn.Module) -> dict[str, Tensor]:
    """Return every secret tensor of a module's private layers as ``layer/tensor``, sharing their memory.

    Args:
        module: Any module.
    """
    layers = private_norms(module)
    return {f"{name}/{k}": v for name, layer in layers.items() for k, v in layer.secret.secret_tensors().items()}


def fill_layers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put secrets into a module's private layers and unlock them.

    Args:
        module: With the layers.
        values: As of `private_values`.

    Raises:
        InputError: they are of other layers.
    """
    layers = private_norms(module)
    theirs = sorted({name.rpartition("/")[0] for name in values})
    if theirs != sorted(layers):
        raise InputError(
            f"The private state is of the layers {theirs}, and the module's private layers are {sorted(layers)}. Use the "
            "state that belongs to this model."
        )
    for name, layer in layers.items():
        prefix = f"{name}/"
        layer.secret.fill({k.removeprefix(prefix): v for k, v in values.items() if k.rpartition("/")[0] == name})


def layers_fingerprint(module: nn.Module) -> str:
    """Return what tells one state of a module's private layers from every other, without telling what it is.

    Args:
        module: Any module.
    """
    return _fingerprint(private_values(module))


def optimizer_fingerprint(private: Mapping[str, Any]) -> str:
    """Return the same of an optimizer's memory of them.

    Args:
        private: The second result of `split_optimizer_states`.
    """
    return _fingerprint(dict(_flat(private, "")))


def states_folder(vault: KeyVault | str | os.PathLike[str]) -> Path:
    """Return where states are kept: a folder as it is, or that of a vault, ``<vault>.states`` beside it.

    Args:
        vault: A vault, its file, or a folder.
    """
    path = vault.path if isinstance(vault, KeyVault) else Path(vault).expanduser()
    return path if path.is_dir() else path.with_name(f"{path.name}.states")


def keep_layers(module: nn.Module, folder: Path, like: Path | None = None) -> str:
    """Write a module's private layers into a folder, unless that state is there already.

    Args:
        module: The module.
        folder: Made with mode 0700 where it is absent.
        like: A vault; where it is encrypted, so is what is written.

    Returns:
        The fingerprint.

    Raises:
        InputError: the file cannot be written.
    """
    values = private_values(module)
    mark = _fingerprint(values)
    _keep(_file(folder, "layers", mark), like, lambda vault: vault.put_all(values))
    return mark


def keep_optimizer(private: Mapping[str, Any], folder: Path, like: Path | None = None) -> str:
    """Write an optimizer's memory of private layers into a folder, unless it is there already.

    Args:
        private: The second result of `split_optimizer_states`.
        folder: See `keep_layers`.
        like: See `keep_layers`.

    Returns:
        The fingerprint.
    """
    mark = optimizer_fingerprint(private)
    _keep(_file(folder, "optimizer", mark), like, lambda vault: save_private_states(vault, "optimizer", private))
    return mark


def fetch_layers(module: nn.Module, folder: Path, mark: str) -> None:
    """Read private layers that `keep_layers` wrote, and unlock the module.

    Args:
        module: With the same layers.
        folder: Where they were kept.
        mark: Their fingerprint.

    Raises:
        InputError: they are not there, or are not what the fingerprint says.
    """
    if not (file := _file(folder, "layers", mark)).exists():
        raise InputError(
            f"The private layers of this checkpoint (fingerprint {mark[:16]}) are not in {folder}: scale and shift of "
            f"{', '.join(private_norms(module))} are lost, for the checkpoint does not hold them. Restore that folder from "
            "the machine that trained the model, or train anew."
        )
    values = KeyVault(file).secrets()
    fill_layers(module, {name: value for name, value in values.items() if isinstance(value, Tensor)})


def fetch_optimizer(folder: Path, mark: str) -> dict[str, Any]:
    """Read what `keep_optimizer` wrote.

    Args:
        folder: Where it was kept.
        mark: Its fingerprint.

    Raises:
        InputError: it is not there.
    """
    if not (file := _file(folder, "optimizer", mark)).exists():
        raise InputError(
            f"The optimizer's memory of the private layers (fingerprint {mark[:16]}) is not in {folder}: the run cannot go on "
            "where it stopped. Restore that folder, or load the model with `load_defended` and train with a new optimizer."
        )
    return load_private_states(KeyVault(file), "optimizer")


def _file(folder: Path, kind: str, mark: str) -> Path:
    return folder / f"{kind}-{mark[:16]}.safetensors"


def _keep(file: Path, like: Path | None, write: Callable[[KeyVault], None]) -> None:
    if file.exists():
        return
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as wrong:
        raise InputError(
            f"The folder {file.parent} for private states cannot be made ({wrong.strerror}). Name one that you may write."
        ) from wrong
    sealed = like is not None and like.exists() and is_encrypted(read_private(like))
    half = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        # A job killed between creation and content would else leave an empty file under the final name.
        write(KeyVault.create(half, SecretRef(f"env:{PASSPHRASE}") if sealed else None))
        os.replace(half, file)
    finally:
        half.unlink(missing_ok=True)


def _fingerprint(values: Mapping[str, Any]) -> str:
    digest = hmac.new(SALT, digestmod=hashlib.sha256)
    for name in sorted(values):
        value = values[name]
        content = (
            f"{value.dtype} {tuple(value.shape)} ".encode() + tensor_bytes(value)
            if isinstance(value, Tensor)
            else repr(value).encode()
        )
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _flat(value: Any, place: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for k, v in value.items() for leaf in _flat(v, f"{place}/{k}")]
    if isinstance(value, list | tuple):
        return [leaf for i, v in enumerate(value) for leaf in _flat(v, f"{place}/{i}")]
    return [(place, value)]
