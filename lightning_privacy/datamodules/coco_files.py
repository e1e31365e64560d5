"""Annotations in COCO's format: which objects are in which picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_privacy.errors import InputError

__all__ = ["AnnotatedFile", "Annotations", "Thing", "read_annotations"]

SHOWN = 10


@dataclass(frozen=True)
class Thing:
    """One object.

    Args:
        box: x, y, width and height in pixels of the file.
        label: Its class, from 0.
        segmentation: Polygons, or COCO's run lengths; None where there is no outline.
    """

    box: tuple[float, float, float, float]
    label: int
    segmentation: Any


@dataclass(frozen=True)
class AnnotatedFile:
    """One picture.

    Args:
        path: The file.
        size: Width and height that the annotations are for.
        things: What is in it.
    """

    path: Path
    size: tuple[int, int]
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Annotations:
    """A file of annotations.

    Args:
        files: Pictures with objects, in the order of their numbers.
        names: Of the classes, by number.
    """

    files: Sequence[AnnotatedFile]
    names: Sequence[str]


def read_annotations(pictures: str | Path, annotations: str | Path, empty: bool = False) -> Annotations:
    """Read annotations of objects; crowds, which no box bounds, are left out.

    Args:
        pictures: Folder of the files that they name.
        annotations: A JSON file with ``images``, ``annotations`` and ``categories``.
        empty: Whether pictures without objects are kept.

    Returns:
        The pictures. Classes are numbered from 0 in the order of their category numbers.

    Raises:
        InputError: the file is absent or no such file, an annotation is of no picture or category, or pictures are absent:
            the first ten problems and their number.
    """
    path, folder = Path(annotations).expanduser(), Path(pictures).expanduser()
    try:
        found = json.loads(path.read_text())
        images = {each["id"]: each for each in found["images"]}
        categories = sorted(found["categories"], key=lambda each: each["id"])
        listed = found["annotations"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as wrong:
        raise InputError(
            f"CocoDetection: {path} cannot be read as annotations in COCO's format ({type(wrong).__name__}: {wrong}). Give a "
            "JSON file with `images`, `annotations` and `categories`."
        ) from wrong
    labels = {each["id"]: number for number, each in enumerate(categories)}
    problems: list[str] = []
    things: dict[Any, list[Thing]] = {number: [] for number in images}
    for each in listed:
        if each.get("iscrowd"):
            continue
        made = _thing(each, labels)
        if isinstance(made, str) or each.get("image_id") not in images:
            problems.append(f"annotation {each.get('id')}: {made if isinstance(made, str) else 'of no listed picture'}")
        elif made.box[2] > 0 and made.box[3] > 0:
            things[each["image_id"]].append(made)
    kept = [(folder / images[number]["file_name"], images[number], tuple(things[number])) for number in sorted(images)]
    kept = [each for each in kept if empty or each[2]]
    problems += [f"{file}: there is no such picture" for file, _, _ in kept if not file.is_file()]
    if problems or not kept:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        rest = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        what = f"{len(problems)} problem(s):{shown}{rest}" if problems else "it lists no picture with an object."
        raise InputError(f"CocoDetection: {path} cannot be used: {what}\nMend the file, or the folder {folder}.")
    files = [AnnotatedFile(file, (int(told["width"]), int(told["height"])), mine) for file, told, mine in kept]
    return Annotations(files, [str(each["name"]) for each in categories])


def _thing(each: Mapping[str, Any], labels: Mapping[Any, int]) -> Thing | str:
    box = each.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return "no `bbox` of four numbers"
    if each.get("category_id") not in labels:
        return f"of the unknown category {each.get('category_id')}"
    x, y, width, height = (float(v) for v in box)
    return Thing((x, y, width, height), labels[each["category_id"]], each.get("segmentation"))
