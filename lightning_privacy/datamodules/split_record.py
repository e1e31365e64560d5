"""The split record: which record had which role, as JSON, and the hash that every checkpoint and audit carries."""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning_privacy.errors import SplitError

__all__ = ["hash_record", "make_record", "read_record_file", "write_record_file"]

VERSION = 1


def make_record(
    roles: Mapping[str, Sequence[int]], record_ids: Sequence[str], contents: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """Return the split record.

    Args:
        roles: Dataset indices by role.
        record_ids: Identity of each record of the pool.
        contents: Content of each record.
        **settings: Plain values that say how the split was made (seed, fractions, ...).

    Returns:
        A JSON-able dict; identities are sorted, so that the order of the dataset does not matter.
    """
    return {
        "version": VERSION,
        "records": len(record_ids),
        "distinct": len(set(contents)),
        **settings,
        "roles": {role: sorted(record_ids[i] for i in indices) for role, indices in roles.items()},
    }


def hash_record(record: Mapping[str, Any]) -> str:
    """Return the sha256 of the record's canonical JSON.

    Example:
        >>> hash_record({"a": 1, "b": 2}) == hash_record({"b": 2, "a": 1})
        True
    """
    return sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_record_file(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record beside its hash; a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps({"split_hash": hash_record(record), **record}, indent=1) + "\n")
    part.replace(path)


def read_record_file(path: str | Path) -> dict[str, Any]:
    """Read a ``split.json`` written by `write_record_file`, or one written by hand with ``roles`` alone.

    Args:
        path: The file.

    Returns:
        The record without its hash.

    Raises:
        SplitError: No such file, no JSON, no ``roles``, or a hash that is not that of the content.
    """
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SplitError(f"The split record {path} cannot be read: {error}.") from error
    roles = record.get("roles") if isinstance(record, dict) else None
    if not isinstance(roles, dict) or not all(isinstance(entries, list) for entries in roles.values()):
        raise SplitError(f"The split record {path} has no `roles`, a mapping from each role to a list of records.")
    if record.get("version", VERSION) > VERSION:
        raise SplitError(
            f"The split record {path} has version {record['version']}; this release reads up to {VERSION}."
        )
    written = record.pop("split_hash", None)
    if written is not None and written != hash_record(record):
        raise SplitError(
            f"The split record {path} was changed after it was written (its sha256 is not {written[:12]}...). Restore "
            "it, or delete its `split_hash` to start a new split from its roles."
        )
    return record
