"""The private half of a checkpoint: optimizer states of secret parameters, kept in a vault."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["load_private_states", "save_private_states"]

_TENSOR = "tensor:"


def save_private_states(vault: KeyVault, name: str, private: Mapping[str, Any]) -> None:
    """Keep what `split_optimizer_states` took out of a checkpoint; it replaces what was kept under that name.

    The tensors are secrets of the vault like any other, so that `find_secrets` looks for them as well.

    Args:
        vault: An existing vault.
        name: Of the checkpoint, or of the run.
        private: The second result of `split_optimizer_states`.

    Raises:
        InputError: a value is neither a tensor nor plain, or the vault cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    layout = _without_tensors(private, name, tensors)
    stale = [n for n in vault.names() if n.startswith(f"{name}/")]
    # one write: a job killed between two would leave tensors of one step beside the layout of another
    vault.put_all(tensors, {name: json.dumps(layout, sort_keys=True)}, replace=True, forget=stale)


def load_private_states(vault: KeyVault, name: str) -> dict[str, Any]:
    """Return what `save_private_states` kept, for `join_optimizer_states`.

    Args:
        vault: The vault.
        name: As it was saved.

    Raises:
        InputError: there is none of that name.
    """
    return _with_tensors(json.loads(vault.text(name)), vault)


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return _TENSOR + path
    if isinstance(value, Mapping):
        # as pairs: JSON would turn whole numbers that are keys into text
        return {"pairs": [[k, _without_tensors(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, str) or value is None or isinstance(value, bool | int | float):
        return value
    raise InputError(
        f"The optimizer state `{path}` holds a {type(value).__name__}. Only tensors and plain values are kept."
    )


def _with_tensors(value: Any, vault: KeyVault) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return vault.tensor(value.removeprefix(_TENSOR))
    if isinstance(value, dict):
        return {k: _with_tensors(v, vault) for k, v in value["pairs"]}
    return [_with_tensors(v, vault) for v in value] if isinstance(value, list) else value
