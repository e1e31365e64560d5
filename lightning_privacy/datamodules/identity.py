"""What makes two records the same: canonical bytes of an item, and of the picture in it."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from lightning_privacy.datamodules.pool import innermost
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.errors import SplitError

__all__ = [
    "DATASETS_OWN",
    "ITEM_DIGEST",
    "content_digest",
    "item_digest",
    "read_identities",
    "record_number",
    "resolve_record_id",
]

RECHECKED = 1024
"""Records that are read a second time to see whether reading is deterministic; all of a pool up to this size."""
ITEM_DIGEST = "sha256 of the item"
DATASETS_OWN = "the dataset's own record_id"


def record_number(record_id: str) -> int:
    """Return the 63-bit integer under which a record travels in a batch.

    Example:
        >>> record_number("ff" * 32) == 2**63 - 1
        True
    """
    return int(record_id[:16], 16) >> 1


def _array(value: Any) -> tuple[str, tuple[int, ...], bytes] | None:
    """Return type, shape and bytes of a tensor, array or picture, else None."""
    if isinstance(value, Image):
        palette = b"" if value.palette is None else value.palette.tobytes()
        return f"image {value.mode}", value.size, value.tobytes() + palette
    if isinstance(value, torch.Tensor):
        dense = value.detach().cpu().contiguous()
        # Through uint8, because numpy has no bfloat16.
        return (
            str(dense.dtype).removeprefix("torch."),
            tuple(value.shape),
            dense.reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    return None


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    def tagged(tag: str, payload: bytes = b"") -> None:
        # The length in front keeps ("ab", "c") apart from ("a", "bc").
        update(f"{tag} {len(payload)}:".encode() + payload)

    if (array := _array(value)) is not None:
        tagged(f"array {array[0]} {array[1]}", array[2])
    elif value is None or isinstance(value, bool | int | float):
        tagged(type(value).__name__, repr(value).encode())
    elif isinstance(value, str):
        tagged("str", value.encode())
    elif isinstance(value, bytes):
        tagged("bytes", value)
    elif isinstance(value, Mapping):
        tagged("mapping", str(len(value)).encode())
        for key in sorted(value, key=str):
            _feed(update, str(key))
            _feed(update, value[key])
    elif isinstance(value, list | tuple):
        tagged("sequence", str(len(value)).encode())
        for part in value:
            _feed(update, part)
    else:
        kind = type(value)
        raise SplitError(
            f"MembershipSplit cannot tell records apart: an item holds a {kind.__module__}.{kind.__qualname__}, which "
            "has no canonical bytes. Pass `record_id`, a function (dataset, index) -> str."
        )


def item_digest(item: Any) -> str:
    """Return the sha256 of an item's canonical bytes.

    Args:
        item: Tensors, arrays, PIL pictures, numbers, strings, and lists, tuples and mappings of these. A tensor and an
            array with equal type, shape and values are equal.

    Returns:
        64 hexadecimal digits.

    Raises:
        SplitError: The item holds an object without canonical bytes.

    Example:
        >>> item_digest({"x": torch.zeros(2), "y": 1}) == item_digest({"y": 1, "x": np.zeros(2, np.float32)})
        True
    """
    digest = hashlib.sha256()
    _feed(digest.update, item)
    return digest.hexdigest()


def _arrays(value: Any) -> list[tuple[int, Any]]:
    if _array(value) is not None:
        shape = value.size if isinstance(value, Image) else value.shape
        return [(int(np.prod(shape)), value)]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [found for part in parts for found in _arrays(part)]


def content_digest(item: Any) -> str:
    """Return the sha256 of an item's largest array alone: the same picture under two captions has one content.

    Args:
        item: As in `item_digest`. Arrays that tie in size are all part of the content; an item without an array of at
            least two values is its own content.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> picture = torch.zeros(3, 4, 4)
        >>> content_digest((picture, "a cat")) == content_digest((picture, "an animal"))
        True
    """
    arrays = _arrays(item)
    largest = max((size for size, _ in arrays), default=0)
    return item_digest([array for size, array in arrays if size == largest] if largest > 1 else item)


def resolve_record_id(record_id: str | Callable[[Any, int], Any]) -> tuple[Callable[[Any, int], Any], str]:
    """Return the function behind an import path (or the function itself) and the path.

    Raises:
        SplitError: The path cannot be imported or names nothing callable.
    """
    if not isinstance(record_id, str):
        inner = record_id.func if isinstance(record_id, partial) else record_id
        return record_id, f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    module, _, name = record_id.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SplitError(
            f"`record_id` of MembershipSplit names {record_id!r}, which cannot be imported: {error}"
        ) from error
    if not callable(function):
        raise SplitError(
            f"`record_id` of MembershipSplit names {record_id!r}, which is not a function (dataset, index) -> str."
        )
    return function, record_id


def _hex(value: Any) -> str:
    """Return 64 hexadecimal digits for whatever a `record_id` function returned."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value
    if not isinstance(value, str | Number | bytes):
        raise SplitError(
            f"`record_id` returned a {type(value).__name__}; a record's identity is a str, bytes or number."
        )
    return item_digest(value.item() if isinstance(value, np.generic) else value)


def _reader(
    dataset: Any, record_id: str | Callable[[Any, int], Any] | None
) -> tuple[Callable[[int], tuple[str, str]], str]:
    """Return a function from index to (identity, content), and its name."""
    if record_id is not None:
        function, name = resolve_record_id(record_id)

        def told(index: int) -> tuple[str, str]:
            identity = _hex(function(dataset, index))
            return identity, identity

        return told, name

    if all(callable(getattr(innermost(dataset, i)[0], "record_id", None)) for i in range(len(dataset))):

        def own(index: int) -> tuple[str, str]:
            base, place = innermost(dataset, index)
            identity = _hex(base.record_id(place))
            return identity, identity

        return own, DATASETS_OWN

    def digest(index: int) -> tuple[str, str]:
        item = dataset[index]
        return item_digest(item), content_digest(item)

    return digest, ITEM_DIGEST


def read_identities(
    dataset: Any, record_id: str | Callable[[Any, int], Any] | None = None
) -> tuple[list[str], list[str], str]:
    """Identify every record of a pool.

    Args:
        dataset: Map-style dataset with a length.
        record_id: Function (dataset, index) -> str, or its import path; None takes the dataset's own
            ``record_id(index)`` where it has one, else the digest of the item.

    Returns:
        Identity of each record, content of each record (equal content must share a role), and how identities were made.

    Raises:
        SplitError: Two reads of a record differ, or an item has no canonical bytes.
    """
    indices = range(len(dataset))
    read, name = _reader(dataset, record_id)
    with own_random_state("identity", 0):
        found = [read(i) for i in indices]
    step = max(1, len(indices) // RECHECKED)
    # Another seed than the first time: a seeded augmentation must not look deterministic.
    with own_random_state("identity", 1):
        changed = next((i for i in indices[::step] if read(i) != found[i]), None)
    if changed is not None:
        raise SplitError(
            f"Two reads of record {changed} of {type(dataset).__name__} differ ({name}), so membership cannot be told "
            "from the item: the dataset probably augments at random. Pass `record_id`, a function (dataset, index) -> "
            "str that identifies the raw record (a file path or a hash of the file), or give the dataset a method "
            "`record_id(index)`."
        )
    return [identity for identity, _ in found], [content for _, content in found], name
