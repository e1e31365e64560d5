"""Secrets in one file of any kind; nothing in it is ever unpickled but tensors and plain values."""

import gzip
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.findings import Finding
from lightning_privacy.secrets.number_search import holds_numbers
from lightning_privacy.secrets.stream_search import Search
from lightning_privacy.secrets.walk import Leaf, leaves
from lightning_privacy.secrets.wandb_log import MAGIC, records

__all__ = ["scan_file", "scan_object"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError, ValueError)


def scan_object(value: Any, search: Search, file: str = "") -> Iterator[Finding]:
    """Yield what an object in memory gives away.

    Args:
        value: See `leaves`.
        search: What to look for.
        file: Where the object came from.
    """
    for place, leaf in leaves(value):
        for secret, form in _in_leaf(leaf, search):
            yield Finding(file, place or "the object", secret, form)


def scan_file(path: Path, search: Search) -> Iterator[Finding]:
    """Yield what a file gives away: in its raw bytes, in its archive's members, in its tensors.

    Args:
        path: The file.
        search: What to look for.

    Raises:
        OSError: the file cannot be read.
        InputError: it is a damaged or encrypted archive.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    for _, secret, form in search.in_bytes(str(path).encode(errors="surrogateescape")):
        yield Finding(str(path), "its name", secret, form)
    if magic == b"PK\x03\x04" and zipfile.is_zipfile(path):
        yield from _scan_zip(path, search)
        return
    with path.open("rb") as file:
        for offset, secret, form in search.in_stream(file):
            yield Finding(str(path), f"byte {offset}", secret, form)
    if magic[:2] == b"\x1f\x8b":
        yield from _scan_gzip(path, search)
    elif magic == MAGIC:
        with path.open("rb") as file:
            for number, record in enumerate(records(file)):
                for _, secret, form in search.in_bytes(record):
                    yield Finding(str(path), f"record {number}", secret, form)
    elif path.suffix == ".npy":
        yield from _scan_array(path.read_bytes(), "the array", str(path), search)
    elif path.suffix in _PICKLES:
        yield from scan_object(_load_plain(path), search, str(path))
    elif path.suffix == ".safetensors":
        yield from _scan_safetensors(path, search)


def _in_leaf(leaf: Leaf, search: Search) -> Iterator[tuple[str, str]]:
    if isinstance(leaf, str | bytes):
        content = leaf.encode(errors="surrogatepass") if isinstance(leaf, str) else leaf
        yield from ((secret, form) for _, secret, form in search.in_bytes(content))
        return
    if isinstance(leaf, np.ndarray):
        if leaf.dtype.kind in "fiub":
            yield from (
                (name, "numbers") for name in holds_numbers(leaf.astype(np.float64).reshape(-1), search.targets)
            )
            leaf = torch.from_numpy(leaf.astype(np.float64))
        else:
            yield from (
                (s, form) for _, s, form in search.in_bytes(leaf.tobytes() if leaf.dtype.kind in "SUV" else b"")
            )
            return
    yield from _in_tensor(leaf, search)


def _in_tensor(tensor: Tensor, search: Search) -> Iterator[tuple[str, str]]:
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    found = search.tensors.find(tensor)
    yield from found
    if tensor.is_meta or tensor.is_sparse:
        return
    # a piece of a secret in a longer tensor: all parameters in one vector, say
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    for _, secret, form in search.in_stream(_ArrayReader(flat)):
        if secret not in {name for name, _ in found}:
            yield secret, form


def _scan_zip(path: Path, search: Search) -> Iterator[Finding]:
    named: set[str] = set()
    plain = _load_plain(path)
    for finding in scan_object(plain, search, str(path)):
        named.add(finding.secret)
        yield finding
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    for _, secret, form in search.in_stream(member):
                        # the storage of a tensor that was named above
                        if secret not in named or "/data/" not in info.filename:
                            yield Finding(str(path), info.filename, secret, form)
                if info.filename.endswith(".npy"):
                    yield from _scan_array(archive.read(info), info.filename, str(path), search)
                elif plain is None and "/data/" in info.filename:
                    yield from _scan_storage(archive.read(info), info.filename, str(path), search)
    except _DAMAGED as wrong:
        raise InputError(
            f"The archive {path} is damaged or encrypted, so it could not be searched. Unpack it, or leave it out."
        ) from wrong


def _scan_storage(content: bytes, entry: str, file: str, search: Search) -> Iterator[Finding]:
    """Read a tensor's bytes, of unknown type and shape, as rows as long as the secrets'."""
    found: set[tuple[str, str]] = set()
    for dtype in _DTYPES:
        if content and len(content) % dtype.itemsize == 0:
            numbers = torch.frombuffer(bytearray(content), dtype=dtype).double().nan_to_num(0, 0, 0)
            for width in search.tensors.widths:
                whole = numbers[: len(numbers) // width * width]
                if len(whole):
                    found |= set(search.tensors.find(whole.reshape(-1, width)))
    yield from (Finding(file, entry, secret, form) for secret, form in sorted(found))


def _scan_gzip(path: Path, search: Search) -> Iterator[Finding]:
    try:
        with gzip.open(path) as unpacked:
            for offset, secret, form in search.in_stream(unpacked):
                yield Finding(str(path), f"unpacked, byte {offset}", secret, form)
    except _DAMAGED:  # what could be unpacked was searched, and the packed bytes before
        return


def _scan_array(content: bytes, entry: str, file: str, search: Search) -> Iterator[Finding]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (*_DAMAGED, TypeError, KeyError, AttributeError, SyntaxError, MemoryError):
        return  # pickled or damaged: its bytes are searched as they are
    for secret, form in _in_leaf(array, search):
        yield Finding(file, entry, secret, form)


def _scan_safetensors(path: Path, search: Search) -> Iterator[Finding]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                for secret, form in search.tensors.find(file.get_tensor(name)):
                    yield Finding(str(path), name, secret, form)
    except (SafetensorError, *_DAMAGED):  # no such file after all: its bytes are searched as they are
        return


def _load_plain(path: Path) -> Any:
    """Return what a checkpoint holds if it is tensors and plain values alone, else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises several kinds for files it will not read; their bytes are searched instead
            return None


class _ArrayReader:
    """Reads an array's bytes piece by piece, without a copy of all of it."""

    def __init__(self, array: Any) -> None:
        self._array, self._at = array, 0

    def read(self, size: int, /) -> bytes:
        piece = self._array[self._at : self._at + size].tobytes()
        self._at += len(piece)
        return piece
