"""Files of tensors that are trusted only if they are whole and say that they are the ones asked for."""

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.shadows.canonical import digest, state_digest

__all__ = ["read_tensors", "remove_abandoned", "write_tensors"]

_ENTRY = "lightning_privacy"
_PART = re.compile(r"\..+\.safetensors\.([0-9a-f]{32}|[0-9]+)")  # digits: a process's number, by earlier versions
ABANDONED = 24 * 3600  # seconds, chosen here: longer than any file takes to write, on clocks that disagree


def write_tensors(path: Path, tensors: Mapping[str, Any], parts: Mapping[str, Any], **notes: str) -> None:
    """Write tensors so that a reader sees a whole file or none.

    Args:
        path: A ``.safetensors`` file.
        tensors: By name.
        parts: Plain values that the file's key is the digest of; they stand in its metadata as JSON.
        **notes: Further text for the metadata.

    Raises:
        InputError: something is no tensor.
    """
    if other := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"`{other[0]}` in the shadow model's state dict is no tensor, and a file of tensors cannot hold it. Register "
            "a buffer instead of returning an object from `get_extra_state`."
        )
    # Cloned because tied weights share memory, which the format refuses.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    told = {"key": digest(parts), "tensors": state_digest(plain), "parts": parts, **notes}
    metadata = {_ENTRY: json.dumps(told, sort_keys=True)}  # one entry: the format does not keep the order of several
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process's number is not enough: containers and machines that share the folder have their own.
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        save_file(plain, part, metadata=metadata)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave the name without the bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what writers left that were killed more than a day ago; whole files stay.

    Args:
        folder: Of the tensor files; it need not exist.
    """
    for part in folder.glob(".*.safetensors.*"):
        try:
            if _PART.fullmatch(part.name) and time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        except OSError:  # another process removed it first, or it is another user's to remove
            continue


def read_tensors(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return the tensors of a file, or None where it is absent, not whole, changed, or of another key."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError):  # absent, half a file, or nothing of ours: to be made anew
        return None
    whole = told.get("key") == key == digest(told.get("parts")) and told.get("tensors") == state_digest(tensors)
    return tensors if whole else None
