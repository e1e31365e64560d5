"""Absolute paths inside texts: only their last part may leave, and never the name of a user."""

import re
from pathlib import Path

__all__ = ["cut_path", "scrub_paths"]

_CUT = "<path>"
_PART = r"[\w.+@%-]"
_NEXT = r"(?:/{1,2}|\\{1,4})"
_FILE_URL = re.compile(r"\bfile:/{1,3}[^\s'\"`<>]*")
# Spaces may stand inside quotes alone; an apostrophe follows a letter.
_QUOTED = re.compile(
    r"(?<!\w)(['\"`])((?:~[\w.-]*|[A-Za-z]:|\\{1,3})?[/\\][^'\"`\n]*[/\\][^'\"`\n]*|~[/\\][^'\"`\n]+)\1"
)
# In a home, the user's name may hold spaces, which a separator then ends.
_HOME = re.compile(
    rf"(?:(?<![\w/\\])[A-Za-z]:)?{_NEXT}(?:home|Users){_NEXT}{_PART}+(?:(?: {_PART}+){{1,2}}(?=[/\\]))?(?:{_NEXT}{_PART}*)*"
)
# A word that begins with /, ~/, a drive or \\ and has one more part; not the middle of an address, of a/b or of 1/n. A
# colon may go before it, as in lists of places, but not the colon of an address.
_PATH = re.compile(
    rf"(?<![\w./\\<~])(?:~[A-Za-z_][\w.-]*|~|(?<!:)[A-Za-z]:|\\{{1,3}})?(?:/|\\){_PART}+(?:{_NEXT}{_PART}*)+"
)
_TILDE = re.compile(r"(?<![\w.:/\\])~(?:[A-Za-z_][\w.-]*)?[/\\][\w.+@%-]*")
_ADDRESS = re.compile(r"\b(?!file:)[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>]*")


def scrub_paths(text: str, folder: Path | None = None) -> str:
    """Return a text in which absolute paths are cut to their last part, and that too where it is a user's name.

    Args:
        text: Any sentence.
        folder: A folder (of the run) whose path is removed as a whole, spaces included.

    Example:
        >>> scrub_paths("see images:/home/ann/x.zip, /home/ann and https://example.org/a/b")
        'see images:<path>/x.zip, <path> and https://example.org/a/b'
    """
    for known in (folder.resolve() if folder else None, Path.home()):
        if known is not None and len(known.parts) > 1:
            last = known.name if known != Path.home() else ""
            text = re.sub(re.escape(str(known)) + r"/", f"{_CUT}/", text)
            text = re.sub(re.escape(str(known)) + r"(?![\w-])", f"{_CUT}/{last}" if last else _CUT, text)
    pieces, end = [], 0
    for address in _ADDRESS.finditer(text):
        pieces += [_outside(text[end : address.start()]), address[0]]
        end = address.end()
    return "".join([*pieces, _outside(text[end:])])


def _outside(text: str) -> str:
    """Cut the paths of a text without addresses."""
    text = _FILE_URL.sub(lambda found: cut_path(found[0].removeprefix("file:")), text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{cut_path(found[2])}{found[1]}", text)
    for pattern in (_HOME, _PATH, _TILDE):
        text = pattern.sub(lambda found: cut_path(found[0]), text)
    return text


def cut_path(path: str) -> str:
    """Return the last part of a path, unless it is the name of a user's home.

    Example:
        >>> cut_path("/home/ann smith/faces.zip"), cut_path("/home/ann")
        ('<path>/faces.zip', '<path>')
    """
    stop = path[len(path.rstrip(".")) :]  # of the sentence
    parts = [part for part in re.split(r"[/\\]+", path.rstrip("./\\")) if part]
    if parts and re.fullmatch(r"~[\w.-]*|[A-Za-z]:", parts[0]):
        parts = ["", *parts[1:]]
    a_user = len(parts) >= 2 and parts[-2] in ("home", "Users") and len([p for p in parts if p]) == 2
    name = "" if not parts or a_user else parts[-1]
    return (f"{_CUT}/{name}" if name else _CUT) + stop
