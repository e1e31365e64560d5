"""What must not leave with a dossier: absolute paths, keys, lists of records."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_privacy.errors import InputError

__all__ = ["check_releasable", "scrub_settings", "scrub_text"]

WITHHELD = "<withheld>"
_SECRET = re.compile(
    r"(^|_)(key|secret|token|password|passphrase|prompt|vault|salt)(s|_file|_path|_ref)?$", re.IGNORECASE
)
_RECORDS = {"roles", "member_scores", "nonmember_scores", "member_ids", "nonmember_ids", "record_ids"}
_MOST_ENTRIES = 64  # chosen here: longer than any list of settings, shorter than any list of records
# A word that begins with /, ~/ or a drive and has one more part; not the middle of a URL, of a/b or of 1/n.
_PATH = re.compile(r"(?<![\w.:/\\<~])(?:~|[A-Za-z]:)?[/\\][\w.+@%-]+(?:[/\\][\w.+@%-]*)+")
_HOME = re.compile(r"(?<![\w.:/\\])~[/\\][\w.+@%-]*")
_LONG_ID = 16  # shorter ids, such as 12, are also ordinary numbers


def scrub_text(text: str, folder: Path | None = None) -> str:
    """Return a text in which absolute paths are cut to their last part.

    Args:
        text: Any sentence.
        folder: A folder (of the run) whose path is removed as a whole, spaces included.

    Example:
        >>> scrub_text("read from /home/ann/data/faces.zip at 1/n")
        'read from <path>/faces.zip at 1/n'
    """
    for known in (folder.resolve() if folder else None, Path.home()):
        if known is not None and len(known.parts) > 1:
            text = text.replace(str(known) + "/", "<path>/").replace(str(known), f"<path>/{known.name}")
    text = _PATH.sub(lambda found: "<path>/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)
    return _HOME.sub(lambda found: "<path>/" + found[0][2:], text)


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
        return {str(k): _entry(str(k), v, folder) for k, v in value.items()}
    if isinstance(value, str):
        whole = value.startswith(("/", "~")) or re.match(r"[A-Za-z]:[/\\]", value)
        return "<path>/" + re.split(r"[/\\]", value.rstrip("/\\"))[-1] if whole else scrub_text(value, folder)
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
    words = set(re.findall(rf"[\w.:-]{{{_LONG_ID},}}", text))
    named = words & {i for i in record_ids if len(i) >= _LONG_ID}
    if named:
        raise InputError(
            f"The dossier would name {len(named)} of the run's records; remove their ids from the notes of the results."
        )


def _entry(name: str, value: Any, folder: Path | None) -> Any:
    if value is not None and (_SECRET.search(name) or name in _RECORDS):
        return WITHHELD
    return scrub_settings(value, folder)
