"""Arrays from a ``.npz`` file that anybody may have written or damaged."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_privacy.errors import InputError

__all__ = ["DAMAGED", "read_npz"]

DAMAGED = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError, OverflowError,
    SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy raises of a file that is cut, flipped, encrypted, a single array, or pickled."""


def read_npz(path: str | os.PathLike[str], what: str = ".npz of plain numbers") -> dict[str, NDArray[Any]]:
    """Return the arrays of a ``.npz`` file; nothing in it is ever unpickled.

    Args:
        path: The file.
        what: What it should be, for errors.

    Raises:
        InputError: it is no ``.npz`` of plain numbers and texts.
    """
    try:
        # opened here, because numpy leaves open what turns out to be damaged
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DAMAGED as wrong:
        raise InputError(f"{path} is no {what} ({type(wrong).__name__}); pickled objects are not read.") from wrong
