"""Files that their owner alone may read, written whole or not at all."""

import contextlib
import os
import stat
import uuid
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["read_private", "write_private"]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path, what: str = "vault") -> bytes:
    """Return the bytes of a file that nobody but its owner may read or write.

    Args:
        path: The file.
        what: What it should be, for errors.

    Raises:
        InputError: it is absent or no file, cannot be read, or others may read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode  # of the file that is read, not of one put in its place
            _refuse_shared(path, mode, what)
            return file.read()
    except FileNotFoundError as gone:
        raise InputError(f"There is no {what} {path}. Name an existing file.") from gone
    except OSError as wrong:
        raise InputError(
            f"The {what} {path} cannot be read ({wrong.strerror}). Name a file that you may read."
        ) from wrong


def write_private(path: Path, content: bytes, what: str = "vault") -> None:
    """Write a file with mode 0600 so that a reader sees the old bytes or the new, also after a power cut.

    Args:
        path: The file; its folder must exist.
        content: All of it.
        what: What it is, for errors.

    Raises:
        InputError: it cannot be written, or the file system does not keep it from others.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _refuse_shared(temporary, os.fstat(descriptor).st_mode, what)  # before a secret stands in it
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as wrong:
        raise InputError(
            f"The {what} {path} cannot be written ({wrong.strerror}). Name a file in an existing folder that you may write."
        ) from wrong
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no temporary file
            temporary.unlink(missing_ok=True)


def _refuse_shared(path: Path, mode: int, what: str) -> None:
    if os.name == "posix" and mode & _OTHERS:
        raise InputError(
            f"Others may read or change the {what} {path} (mode {stat.S_IMODE(mode):04o}). If they should not have, "
            f"`chmod 600 {path}`; if they may have read it, rotate its keys as well. On a file system without modes, move it "
            "to one that has them."
        )


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # a folder cannot be opened elsewhere
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
