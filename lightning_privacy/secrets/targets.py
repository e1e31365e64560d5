"""What a scan looks for: a vault's secrets as numbers, and as the byte patterns they leave in files."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lightning_privacy.secrets.distinctness import search_starts, window_length
from lightning_privacy.secrets.fingerprint import tensor_bytes

__all__ = ["Pattern", "TensorTarget", "base64_pieces", "targets_of"]

_FLOATS = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SHORTEST_TEXT = 6  # bytes, chosen here: shorter ones turn up in any large file by chance
_RAW_RUNS, _TEXT_RUNS = 1024, 64  # chosen here: of a secret, looked for as bytes and as text
_PLAIN_RUNS = 4  # of a secret of few distinct values (a key of -1 and 1), whose patterns need a slower search


@dataclass(frozen=True)
class Pattern:
    """Bytes that a secret leaves.

    Args:
        secret: Its name.
        form: How it lies there.
        content: The bytes.
    """

    secret: str
    form: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class TensorTarget:
    """A secret tensor as numbers.

    Args:
        name: The secret's.
        values: All numbers, row by row.
        shape: Of the tensor.
        run: How many consecutive numbers are looked for.
    """

    name: str
    values: Float[NDArray[np.float64], " n"] = field(repr=False)
    shape: tuple[int, ...]
    run: int


def targets_of(
    secrets: Mapping[str, Tensor | str],
) -> tuple[list[TensorTarget], list[Pattern], list[Pattern], list[str]]:
    """Return what to look for.

    Args:
        secrets: Tensors and texts by name.

    Returns:
        Tensors as numbers; patterns that may lie anywhere; patterns of printable text, in which white space does not
        count; names of secrets that cannot be told from anything else (constant, or too short).
    """
    tensors: list[TensorTarget] = []
    binary: list[Pattern] = []
    printable: list[Pattern] = []
    hopeless: list[str] = []
    for name, secret in secrets.items():
        if isinstance(secret, str):
            if len(secret.encode()) < _SHORTEST_TEXT:
                hopeless.append(name)
                continue
            binary += _text_patterns(name, secret)
            printable += _printable_text(name, secret)
            continue
        values = secret.detach().cpu().double().reshape(-1).numpy() if not secret.is_complex() else np.zeros(0)
        run = window_length(values)
        if run is None or not search_starts(values, run, _RAW_RUNS):
            hopeless.append(name)
            continue
        tensors.append(TensorTarget(name, values, tuple(secret.shape), run))
        for kind, cast in _casts(secret):
            binary += _raw_patterns(name, kind, cast, values, run)
            printable += _encoded_patterns(name, kind, cast, values, run)
    return tensors, binary, printable, hopeless


def base64_pieces(content: bytes) -> list[bytes]:
    """Return what of some bytes is certain to stand in the Base64 of a longer text, for each of three alignments.

    Args:
        content: The bytes.

    Example:
        >>> base64_pieces(b"secret")
        [b'c2VjcmV0', b'NlY3Jld', b'zZWNyZX']
    """
    pieces = []
    for before in range(3):
        coded = base64.b64encode(bytes(before) + content)
        pieces.append(coded[-(-8 * before // 6) : 8 * (before + len(content)) // 6])
    return pieces


def _casts(secret: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not secret.is_floating_point():
        yield str(secret.dtype).removeprefix("torch."), secret
        return
    for kind, dtype in _FLOATS.items():
        cast = secret.detach().cpu().to(dtype)
        if cast.isfinite().all():
            yield kind, cast
    if bool((secret == secret.round()).all()) and float(secret.abs().max()) < 128:
        yield "int8", secret.detach().cpu().to(torch.int8)


def _raw_patterns(name: str, kind: str, cast: Tensor, values: NDArray[Any], run: int) -> Iterator[Pattern]:
    most = _RAW_RUNS if run < 32 else _PLAIN_RUNS
    orders = [(cast, values)]
    if cast.ndim == 2 and min(cast.shape) > 1:  # saved column by column
        orders.append((cast.t(), values.reshape(tuple(cast.shape)).T.reshape(-1)))
    for tensor, numbers in orders:
        raw, size = tensor_bytes(tensor), tensor.element_size()
        for start in search_starts(numbers, run, most):
            yield Pattern(name, f"raw bytes ({kind})", raw[start * size : (start + run) * size])


def _encoded_patterns(name: str, kind: str, cast: Tensor, values: NDArray[Any], run: int) -> Iterator[Pattern]:
    raw, size = tensor_bytes(cast), cast.element_size()
    for start in search_starts(values, run, _TEXT_RUNS if run < 32 else _PLAIN_RUNS):
        yield from _encoded(name, kind, raw[start * size : (start + run) * size])


def _encoded(name: str, kind: str, content: bytes) -> Iterator[Pattern]:
    for text in {content.hex(), content.hex().upper()}:
        yield Pattern(name, f"hexadecimal ({kind})", text.encode())
    for piece in base64_pieces(content):
        for variant in {piece, piece.translate(bytes.maketrans(b"+/", b"-_"))}:
            yield Pattern(name, f"Base64 ({kind})", variant)


def _text_patterns(name: str, text: str) -> Iterator[Pattern]:
    forms = {"UTF-8": text.encode(), "UTF-16": text.encode("utf-16-le")}
    escaped = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]} - {text}
    for form, content in forms.items():
        yield Pattern(name, f"text ({form})", content)
    for content in escaped:
        yield Pattern(name, "text (escaped)", content.encode())


def _printable_text(name: str, text: str) -> Iterator[Pattern]:
    """Yield the text as it stands in wrapped lines, and encoded."""
    squeezed = "".join(text.split())
    if squeezed != text and len(squeezed.encode()) >= _SHORTEST_TEXT:
        for variant in {squeezed, "".join(json.dumps(text)[1:-1].replace("\\n", "").split())}:
            yield Pattern(name, "text (wrapped)", variant.encode())
    yield from _encoded(name, "UTF-8", text.encode())
