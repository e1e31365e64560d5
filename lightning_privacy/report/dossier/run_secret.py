"""The secret of a run under which the ids of its records are hashed; it stays in the run's folder."""

import contextlib
import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["run_secret", "salt_of"]


def run_secret(folder: Path) -> bytes:
    """Return the secret of a run from which its salts derive; made at first, kept in a file that only its owner reads.

    Args:
        folder: The run's folder.

    Raises:
        InputError: the file is damaged, is no file, or cannot be written.
    """
    path = folder / "dossier_secret"
    if not os.path.lexists(path):
        _make(path)
    damaged = f"{path} is damaged. Remove it: a new one gives the records other salted ids."
    try:
        made = bytes.fromhex(path.read_text(encoding="utf-8").strip())
    except OSError as wrong:
        raise InputError(
            f"{path} cannot be read ({wrong.strerror}). Make it readable, or remove it: a new one gives the records other "
            "salted ids."
        ) from wrong
    except ValueError as wrong:
        raise InputError(damaged) from wrong
    if len(made) != 32:
        raise InputError(damaged)
    return made


def salt_of(secret: bytes, content: str) -> bytes:
    """Return the salt of one dossier: the same for the same content, unrelated for any other.

    Args:
        secret: The run's.
        content: Hash of what the dossier says, so that two dossiers of a run cannot be joined record by record.
    """
    return hmac.new(secret, b"dossier salt " + content.encode(), hashlib.sha256).digest()


def _make(path: Path) -> None:
    """Put a whole secret in place, unless another process was quicker: a name is linked to a file that is complete."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _link(temporary, path)
    except OSError as wrong:
        raise InputError(
            f"The secret of the record ids cannot be written to {path} ({wrong.strerror}). Copy the run to a folder that you "
            "may write."
        ) from wrong
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no temporary file
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not os.path.lexists(path):
            os.replace(temporary, path)
