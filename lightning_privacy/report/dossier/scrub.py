"""What must not leave with a dossier: absolute paths, secrets, lists of records."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.scrub_paths import cut_path, scrub_paths
from lightning_privacy.report.dossier.scrub_secrets import WITHHELD, is_secret_name, scrub_secrets

__all__ = ["check_releasable", "scrub_settings", "scrub_text"]

_RECORDS = {"roles", "member_scores", "nonmember_scores", "member_ids", "nonmember_ids", "record_ids"}
_MOST_ENTRIES = 64  # chosen here: longer than any list of settings, shorter than any list of records
_WHOLE = re.compile(r"(?:[/~\\]|[A-Za-z]:[/\\])[^'\"`\n]*")
_LONG_ID = 16  # shorter ids, such as 12, are also ordinary numbers
_LONG_PREFIX = 12  # of a hexadecimal id: 48 bits, which no other number of a dossier shares by chance


def scrub_text(text: str, folder: Path | None = None) -> str:
    """Return a text without secrets, in which absolute paths are cut to their last part.

    Args:
        text: Any sentence.
        folder: A folder (of the run) whose path is removed as a whole, spaces included.

    Example:
        >>> scrub_text("read from /home/ann/data/faces.zip at 1/n")
        'read from <path>/faces.zip at 1/n'
    """
    return scrub_paths(scrub_secrets(text), folder)


def scrub_settings(value: Any, folder: Path | None = None) -> Any:
    """Return settings as plain values without secrets, absolute paths and lists of records.

    Args:
        value: Settings as read from YAML or a result's ``extra``.
        folder: See `scrub_text`.

    Example:
        >>> scrub_settings({"lr": 0.1, "prompt": "with oil pastel", "data": {"root": "/home/ann/faces"}})
        {'lr': 0.1, 'prompt': '<withheld>', 'data': {'root': '<path>/faces'}}
    """
    if isinstance(value, Mapping):
        return {scrub_text(str(k), folder): _entry(str(k), v, folder) for k, v in value.items()}
    if isinstance(value, str):
        # a path that is the whole value may hold spaces
        return cut_path(scrub_secrets(value)) if _WHOLE.fullmatch(value) else scrub_text(value, folder)
    if isinstance(value, Sequence):
        if len(value) > _MOST_ENTRIES:
            return f"<{len(value)} entries left out>"
        return [scrub_settings(v, folder) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else scrub_text(str(value), folder)


def check_releasable(text: str, record_ids: Sequence[str] = (), secrets: Sequence[str] = ()) -> None:
    """Refuse a text that names the user's home, a record, or a secret.

    Args:
        text: What is about to be written.
        record_ids: Ids of the split record; those too short to be told from numbers are not looked for.
        secrets: Texts that must not occur.

    Raises:
        InputError: one of them occurs.
    """
    home = str(Path.home())
    if len(home) > 1 and re.search(re.escape(home) + r"(?![\w.-])", text):
        raise InputError(f"The dossier would name {home}; remove that path from the results or the configuration.")
    if any(secret in text for secret in secrets if secret):
        raise InputError("The dossier would contain the salt of its record ids, and was not written.")
    named = _named(text, record_ids)
    if named:
        raise InputError(
            f"The dossier would name {named} of the run's records; remove their ids from the notes of the results."
        )


def _named(text: str, record_ids: Sequence[str]) -> int:
    """Return how many records a text names, by their whole id wherever it stands, or by the beginning of a hash."""
    ids = {i for i in record_ids if len(i) >= _LONG_ID}
    lengths = {len(i) for i in ids}
    words = set(re.findall(rf"[\w.:-]{{{_LONG_ID},}}", text))
    parts = {word[k : k + n] for word in words for n in lengths for k in range(len(word) - n + 1)}
    found = ids & parts
    hashes = {i.lower()[:_LONG_PREFIX]: i for i in ids if re.fullmatch(r"[0-9a-fA-F]+", i)}
    runs = re.findall(rf"[0-9a-f]{{{_LONG_PREFIX},}}", text.lower())
    return len(found | {hashes[run[:_LONG_PREFIX]] for run in runs if run[:_LONG_PREFIX] in hashes})


def _entry(name: str, value: Any, folder: Path | None) -> Any:
    if value is not None and (is_secret_name(name) or name in _RECORDS):
        return WITHHELD
    return scrub_settings(value, folder)
