"""Finding pictures and their captions in a folder, and proving that every one of them can be read."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lightning_privacy.errors import InputError

__all__ = ["CaptionedFile", "decode", "read_folder"]

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
CAPTION_KEYS = ("text", "caption")
METADATA = "metadata.jsonl"
SHOWN = 10


@dataclass(frozen=True)
class CaptionedFile:
    """A picture on disk.

    Args:
        path: The file.
        caption: Its caption.
        record_id: sha256 of the file's bytes.
    """

    path: Path
    caption: str
    record_id: str


def decode(data: bytes) -> Image.Image:
    """Decode a picture: upright (EXIF orientation), RGB, transparency on white, 16 bits reduced to 8, first frame.

    Args:
        data: Bytes of the file.

    Returns:
        An RGB picture.

    Raises:
        OSError: The bytes are no picture or end too early.
        ValueError: The pixels are of a kind that has no fixed range.
    """
    with Image.open(BytesIO(data)) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a fixed range")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _read_metadata(path: Path, key: str | None, captions: dict[Path, str], problems: list[str]) -> None:
    """Add the captions of one ``metadata.jsonl``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: is no JSON: {error}")
            continue
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            problems.append(f"{where}: has no `file_name`")
            continue
        picture = Path(os.path.normpath(path.parent / row["file_name"]))
        caption = next((row[name] for name in ([key] if key else CAPTION_KEYS) if name in row), None)
        if not picture.is_file():
            problems.append(f"{picture}: missing file, named in {where}")
        elif picture in captions:
            problems.append(f"{picture}: named a second time in {where}")
        elif not isinstance(caption, str) or not caption.strip():
            problems.append(f"{picture}: missing or empty caption ({key or ' or '.join(CAPTION_KEYS)}) in {where}")
            captions[picture] = ""
        else:
            captions[picture] = caption.strip()


def _read_beside(picture: Path, captions: dict[Path, str], problems: list[str]) -> None:
    """Add the caption in the ``.txt`` beside a picture."""
    beside = picture.with_suffix(".txt")
    captions[picture] = ""
    if not beside.is_file():
        problems.append(f"{picture}: no caption (neither in a {METADATA} nor in {beside.name} beside it)")
        return
    try:
        captions[picture] = beside.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{beside}: cannot be read: {error}")
        return
    if not captions[picture]:
        problems.append(f"{beside}: empty caption file")


def read_folder(
    root: str | Path, caption_key: str | None = None, check: bool = True, threads: int | None = None
) -> list[CaptionedFile]:
    """List the pictures of a folder with their captions and identities.

    Args:
        root: The folder, searched recursively; names that start with a dot are skipped.
        caption_key: Key of the caption in ``metadata.jsonl``; None takes ``text``, else ``caption``.
        check: Decode every picture.
        threads: Files read at a time; None for twice the processors, at most 16.

    Returns:
        Pictures in the order of their paths.

    Raises:
        InputError: Everything that is wrong with the folder, by path: the first ten problems and their number.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise InputError(f"ImageCaptionFolder: {root} is not a folder.")
    problems: list[str] = []
    captions: dict[Path, str] = {}
    found = list(_files(root))
    for path in found:
        if path.name == METADATA:
            _read_metadata(path, caption_key, captions, problems)
    for path in found:
        if path.suffix.lower() in PICTURES and path not in captions:
            _read_beside(path, captions, problems)

    def identify(path: Path) -> str:
        try:
            data = path.read_bytes()
            if check:
                decode(data)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            # PIL raises SyntaxError for broken PNG chunks.
            problems.append(f"{path}: corrupt picture: {error}")
            return ""
        return hashlib.sha256(data).hexdigest()

    paths = sorted(captions)
    with ThreadPoolExecutor(threads or min(16, 2 * (os.cpu_count() or 1))) as pool:
        ids = list(pool.map(identify, paths))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in sorted(problems)[:SHOWN])
        rest = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(
            f"ImageCaptionFolder: {len(problems)} problem(s) in {root}:{listed}{rest}\nMend or remove these files."
        )
    if not paths:
        raise InputError(
            f"ImageCaptionFolder: {root} holds no pictures. Put pictures there, with a {METADATA} "
            '({"file_name": ..., "text": ...}) or a .txt beside each.'
        )
    return [CaptionedFile(path, captions[path], each) for path, each in zip(paths, ids, strict=True)]
