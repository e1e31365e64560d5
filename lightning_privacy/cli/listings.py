"""The verbs that show what is shipped: recipes and defences. They import no torch, except for a third party's card."""

import argparse
import shutil
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.syntax import Syntax

from lightning_privacy import resources
from lightning_privacy.core.registry import defence_names
from lightning_privacy.errors import InputError

__all__ = ["defences", "recipes"]


def recipes(verb: str, args: list[str]) -> int:
    """List, show or copy shipped YAMLs."""
    parser = argparse.ArgumentParser(f"lightning-privacy {verb}", description="The shipped recipes and fragments.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|show|cp")
    actions.add_parser("ls", help="names, each with its first line")
    show = actions.add_parser("show", help="print one")
    show.add_argument("name")
    cp = actions.add_parser("cp", help="copy one, to be changed")
    cp.add_argument("name")
    cp.add_argument("destination", type=Path, help="a new file, or an existing folder")
    chosen = parser.parse_args(args)
    console = Console()
    if chosen.action == "ls":
        every = resources.recipes()
        width = max(map(len, every), default=0)
        for name, path in every.items():
            print(f"{name:{width}}  {_first_comment(path)}")
    elif chosen.action == "show":
        path = resources.recipe(chosen.name)
        text = path.read_text(encoding="utf-8")
        if console.is_terminal:
            console.print(Syntax(text, "yaml" if path.suffix == ".yaml" else "bash", background_color="default"))
        else:
            print(text, end="")
    else:
        print(_copy(resources.recipe(chosen.name), chosen.destination))
    return 0


def defences(verb: str, args: list[str]) -> int:
    """List the registered defences, or show a method card."""
    parser = argparse.ArgumentParser(f"lightning-privacy {verb}", description="The registered defences.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|show")
    actions.add_parser("ls", help="names, each with the first sentence of its card")
    show = actions.add_parser("show", help="the method card")
    show.add_argument("name")
    chosen = parser.parse_args(args)
    if chosen.action == "show":
        Console().print(Markdown(resources.method_card(chosen.name)))
        return 0
    names = defence_names()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {_first_sentence(name)}")
    return 0


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("#!"):
            return line.lstrip("# ").strip()
    return ""


def _first_sentence(name: str) -> str:
    try:
        lines = resources.method_card(name).splitlines()
    except InputError as missing:
        return f"({missing})"
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def _copy(source: Path, destination: Path) -> Path:
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise InputError(f"{target} exists; it was left as it is. Name another file or remove it.")
    if not target.parent.is_dir():
        raise InputError(f"The folder {target.parent} does not exist. Make it first.")
    shutil.copyfile(source, target)
    return target
