"""The hash by which a file is named."""

import hashlib
from pathlib import Path

__all__ = ["file_hash"]


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
