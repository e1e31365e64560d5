"""Encodings computed once: addressed by what was encoded and by what encoded it."""

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["EncodingCache", "content_key"]


def content_key(content: Tensor | str, encoder: str) -> str:
    """Return the address of an encoding: sha256 of the content's bytes and the encoder's fingerprint.

    Args:
        content: One picture, or one caption.
        encoder: Fingerprint of what encodes it, settings included.
    """
    digest = hashlib.sha256(encoder.encode())
    if isinstance(content, str):
        digest.update(content.encode())
    else:
        digest.update(f"{tuple(content.shape)}{content.dtype}".encode())
        digest.update(content.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class EncodingCache:
    """A bounded store of encodings in memory, and optionally on disk.

    Every entry is encoded on its own, never as part of a batch: kernels may round differently with the batch size, and
    a resumed run, which meets its records in other company, must find the same bits.

    Args:
        folder: Where entries are also kept as safetensors files; memory only if None. Several processes may share it.
        max_bytes: Memory after which the least recently used entries are dropped.

    Attributes:
        hits: Entries found.
        misses: Entries encoded.
    """

    def __init__(self, folder: Path | str | None = None, max_bytes: int = 2**31) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.max_bytes, self.hits, self.misses = max_bytes, 0, 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, keys: Sequence[str], encode: Callable[[int], Tensor]) -> Float[Tensor, "batch ..."]:
        """Return the stacked entries on the CPU; ``encode(i)`` computes the i-th where it is missing.

        Args:
            keys: Address of each entry.
            encode: Function of the position that returns one entry without batch dimension.
        """
        return torch.stack([self._one(key, lambda i=i: encode(i)) for i, key in enumerate(keys)])

    def _one(self, key: str, encode: Callable[[], Tensor]) -> Tensor:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            self.hits += 1
            return found
        found = self._read(key)
        if found is None:
            self.misses += 1
            # A tensor made under inference mode could never enter a later training graph.
            with torch.inference_mode(False), torch.no_grad():
                found = encode().detach().float().cpu().contiguous().clone()
            self._write(key, found)
        else:
            self.hits += 1
        self._entries[key] = found
        self._bytes += found.nbytes
        while self._bytes > self.max_bytes and len(self._entries) > 1:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes
        return found

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            with torch.inference_mode(False):
                return load_file(file)["encoding"]
        except (SafetensorError, KeyError, OSError):
            return None  # a file cut short by a full disk: encoded and written anew

    def _write(self, key: str, entry: Tensor) -> None:
        file = self._file(key)
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
        os.close(handle)
        try:
            save_file({"encoding": entry}, temporary)
            os.replace(temporary, file)  # readers see the whole file or none
        finally:
            Path(temporary).unlink(missing_ok=True)
