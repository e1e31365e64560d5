"""The bytes of a vault: a safetensors file whose metadata says what each entry is."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["VaultContent", "decode", "encode", "file_metadata", "from_text", "to_text"]

VERSION = 1
ENTRY = "lightning_privacy_vault"
"""Under which the description lies in the file's metadata."""


@dataclass
class VaultContent:
    """What lies in a vault.

    Args:
        salt: Of fingerprints and derived keys; not secret.
        tensors: By name; texts as their UTF-8 bytes.
        facts: By name, what an entry is: its ``kind``, and how it was derived.
    """

    salt: bytes
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


def encode(content: VaultContent) -> bytes:
    """Return a vault's content as a safetensors file in memory.

    Args:
        content: What lies in the vault.
    """
    told = {"version": VERSION, "salt": content.salt.hex(), "entries": content.facts}
    # cloned because entries that share memory are refused by the format
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in content.tensors.items()}
    return save(tensors, {ENTRY: json.dumps(told, sort_keys=True)})


def decode(raw: bytes, path: Path) -> VaultContent:
    """Return the content of a vault from its bytes; nothing is ever unpickled.

    Args:
        raw: The file.
        path: Its name, for errors.

    Raises:
        InputError: it is no vault, is damaged, or is newer than this package.
    """
    try:
        told = json.loads(file_metadata(raw)[ENTRY])
        if told["version"] > VERSION:
            raise InputError(
                f"The vault {path} has version {told['version']}, and this installation reads {VERSION} at most. Update it: "
                "`pip install -U lightning-privacy`."
            )
        content = VaultContent(bytes.fromhex(told["salt"]), load(raw), told["entries"])
    except (ValueError, KeyError, TypeError, SafetensorError) as wrong:
        raise InputError(f"{path} is no vault, or is damaged. Restore it from a copy, or make one anew.") from wrong
    if set(content.tensors) != set(content.facts):
        raise InputError(f"The vault {path} is damaged: entries and their description differ. Restore it from a copy.")
    return content


def file_metadata(raw: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file in memory.

    Args:
        raw: The file: eight bytes of length, a JSON header, the tensors.

    Raises:
        ValueError: it is no such file.
    """
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("no safetensors header")
    return header.get("__metadata__", {})


def from_text(text: str) -> Tensor:
    """Return a text's UTF-8 bytes as a tensor.

    Example:
        >>> from_text("hé").tolist()
        [104, 195, 169]
    """
    return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())


def to_text(tensor: Tensor) -> str:
    """Return the text whose UTF-8 bytes a tensor holds.

    Example:
        >>> to_text(from_text("hé"))
        'hé'
    """
    return bytes(tensor.tolist()).decode()
