"""Edits on disk, addressed by the picture and by the key: made once, shared by ranks and runs."""

import contextlib
import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["EditStore", "picture_key"]

Picture = Float[Tensor, "channels height width"]


def picture_key(image: Picture) -> str:
    """Return the sha256 of a picture's shape and values.

    Example:
        >>> picture_key(torch.zeros(1, 2, 2))[:8]
        '56f46952'
    """
    flat = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(flat.shape)).encode())
    digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


class EditStore:
    """The edits of one key in a folder, one safetensors file a picture.

    A file appears whole or not at all, so that processes may share the folder and a run that was killed goes on. Edits
    show what the key does: the folder is made with mode 0700 and is to be kept like the pictures.

    Args:
        folder: Holds the edits of any number of keys; None keeps them in memory.
        fingerprint: Of the key.
        on_grid: Whether edits are multiples of 1/255, and kept as bytes.
        damaged: A file that cannot be read is made anew (``redo``) or is an ``error``.
        max_bytes: Memory for edits that were read; beyond it the oldest go (never without a folder).
    """

    def __init__(
        self,
        folder: Path | str | None,
        fingerprint: str,
        on_grid: bool = True,
        damaged: Literal["redo", "error"] = "redo",
        max_bytes: int = 2**29,
    ) -> None:
        self.folder = None if folder is None else Path(folder).expanduser() / fingerprint[:32]
        self.on_grid, self.damaged, self.max_bytes = on_grid, damaged, max_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def path(self, key: str) -> Path | None:
        """Return a picture's file; None where edits are in memory.

        Args:
            key: `picture_key` of the raw picture.
        """
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str, shape: tuple[int, ...]) -> bool:
        """Return whether an edit is there and whole.

        Args:
            key: `picture_key` of the raw picture.
            shape: Of the picture.

        Raises:
            InputError: it is damaged, and that is an error.
        """
        if key in self._kept:
            return True
        path = self.path(key)
        return path is not None and path.is_file() and self._read(path, shape) is not None

    def get(self, key: str, shape: tuple[int, ...]) -> Picture | None:
        """Return an edit; None where there is none.

        Args:
            key: `picture_key` of the raw picture.
            shape: Of the picture.
        """
        kept = self._kept.get(key)
        if kept is None:
            path = self.path(key)
            kept = self._read(path, shape) if path is not None and path.is_file() else None
            if kept is None:
                return None
            self._keep(key, kept)
        return kept.float().div(255) if kept.dtype == torch.uint8 else kept

    def put(self, key: str, edited: Picture) -> None:
        """Keep an edit.

        Args:
            key: `picture_key` of the raw picture.
            edited: Values in [0, 1].

        Raises:
            InputError: the folder cannot be written.
        """
        value = edited.detach().cpu().float()
        value = value.mul(255).round().to(torch.uint8) if self.on_grid else value
        value = value.contiguous().clone()
        path = self.path(key)
        if path is not None:
            _write(path, save({"edited": value}))
        self._keep(key, value)

    def _keep(self, key: str, value: Tensor) -> None:
        self._kept[key] = value
        self._bytes += value.nbytes
        while self.folder is not None and self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def _read(self, path: Path, shape: tuple[int, ...]) -> Tensor | None:
        try:
            value = load_file(path)["edited"]
            if tuple(value.shape) == tuple(shape) and value.dtype == (torch.uint8 if self.on_grid else torch.float32):
                return value
            why = f"it holds {value.dtype} of shape {tuple(value.shape)}"
        except (SafetensorError, KeyError, OSError) as wrong:
            why = str(wrong).splitlines()[0] if str(wrong) else type(wrong).__name__
        if self.damaged == "error":
            raise InputError(f"The kept edit {path} is damaged ({why}). Delete it, and it is made anew.")
        return None

    def __getstate__(self) -> dict[str, object]:
        # for loader processes, which read the folder
        return {**self.__dict__, **({"_kept": OrderedDict(), "_bytes": 0} if self.folder is not None else {})}


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parents[1].mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as wrong:
        raise InputError(
            f"The edit {path} cannot be kept ({wrong.strerror}). Name a `cache` that you may write."
        ) from wrong
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
