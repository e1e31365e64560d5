"""Text files of a run, read so that what is damaged is named with its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lightning_privacy.errors import InputError

__all__ = ["decoded", "read_json_lines"]

Made = TypeVar("Made")


def decoded(path: Path, whole_lines: bool = False) -> str:
    """Return a file as text.

    Args:
        path: The file; one that is not there is empty.
        whole_lines: Leave out what follows the last line end: what a killed job did not finish.

    Raises:
        InputError: it cannot be read, or is no UTF-8; the message names the line.
    """
    if not path.is_file():
        return ""
    try:
        raw = path.read_bytes()
        return (raw[: raw.rfind(b"\n") + 1] if whole_lines else raw).decode()
    except OSError as gone:
        raise InputError(f"{path} cannot be read: {gone.strerror}.") from gone
    except UnicodeDecodeError as wrong:
        line = wrong.object[: wrong.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: this is no UTF-8 text ({wrong.reason}). Restore the file.") from wrong


def read_json_lines(path: Path, what: str, make: Callable[[str], Made]) -> list[Made]:
    """Return what the whole, non-empty lines of a file hold.

    Args:
        path: The file; one that is not there holds nothing.
        what: What a line is, for errors: ``attack result``.
        make: Reads one line; raises ``ValueError``, ``KeyError``, ``TypeError`` or ``RecursionError`` where it cannot.

    Raises:
        InputError: a line cannot be read; the message names the file, the line and the field.
    """
    made = []
    for number, line in enumerate(decoded(path, whole_lines=True).split("\n"), 1):
        if not line.strip():
            continue
        try:
            made.append(make(line))
        except (ValueError, KeyError, TypeError, RecursionError) as wrong:
            why = _reason(wrong)
            raise InputError(
                f"{path} has a line that is no {what}, line {number}: {why}. Correct or remove it: {line[:80]}"
            ) from wrong
    return made


def _reason(wrong: Exception) -> str:
    if isinstance(wrong, RecursionError):
        return "it is nested too deeply"
    if isinstance(wrong, json.JSONDecodeError):
        return f"it is no JSON ({wrong.msg})"
    return " ".join(str(wrong).split()) or type(wrong).__name__
