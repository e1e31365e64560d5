"""The argument parser: LightningCLI's, with errors of a few lines that name the path and the likely spelling."""

import argparse
import difflib
import importlib
import inspect
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["PrivacyParser", "explain", "unknown_empty_keys"]

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted|Subcommand '\w+' does not accept option '([^']+)'")
_UNIMPORTABLE = re.compile(
    r"Problem with given class_path '([^']+)':\s+(module '[^']+' has no attribute '[^']+'|No module named '[^']+')"
)
_UNRECOGNISED = re.compile(r"unrecognized arguments: -*([^\s=]+)")


class PrivacyParser(LightningArgumentParser):
    """LightningCLI's parser without abbreviations, and without the two pages of usage before an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # with abbreviations, --trainer.max_epoch would silently mean --trainer.max_epochs
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and where help is, and exit with 2."""
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, message) from ex
        culprit = getattr(ex, "subcommand_parser", None) or self
        program = culprit.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {explain(message, known_keys(culprit))}\ntip: {program} --help lists every option\n")
        self.exit(2)


def known_keys(parser: argparse.ArgumentParser) -> list[str]:
    """Return the dotted names of a parser's options, those of its sub-commands included."""
    keys = {action.dest for action in parser._actions if action.dest != argparse.SUPPRESS}
    chosen = getattr(parser, "_subcommands_action", None)
    for sub in getattr(chosen, "_name_parser_map", {}).values():
        keys |= {action.dest for action in sub._actions if action.dest != argparse.SUPPRESS}
    return sorted(keys)


def unknown_empty_keys(raw: Any, keys: list[str], prefix: str = "") -> list[str]:
    """Return the keys of a configuration file that name no option and hold nothing.

    jsonargparse looks at leaves alone, so that ``defences: {smp_loar: {}}`` would train an undefended model in silence.

    Args:
        raw: The file's content.
        keys: The parser's options, dotted.
        prefix: Path to ``raw``.

    Example:
        >>> unknown_empty_keys({"defences": {"smp_loar": {}}, "trainer": {}}, ["defences.smp_lora", "trainer.devices"])
        ['defences.smp_loar']
    """
    found: list[str] = []
    for key, value in raw.items() if isinstance(raw, dict) else ():
        path = f"{prefix}{key}".removesuffix("+")
        if path in keys:
            continue
        if value == {} and not any(k.startswith(path + ".") for k in keys):
            found.append(path)
        found += unknown_empty_keys(value, keys, path + ".")
    return found


def explain(message: str, keys: list[str]) -> str:
    """Return jsonargparse's message shortened where it says that an option or a class does not exist.

    Args:
        message: What jsonargparse reports, often a tree of the alternatives that it tried.
        keys: The parser's options, dotted, to find the likely spelling.

    Example:
        >>> explain("Option 'trainer.max_epoch' is not accepted", ["trainer.max_epochs", "seed_everything"])
        'there is no option `trainer.max_epoch`. Did you mean `trainer.max_epochs`?'
    """
    if (gone := _UNIMPORTABLE.search(message)) and (named := _KEY.search(message)):
        return (
            f"`{named[1]}`: the class `{gone[1]}` cannot be imported ({gone[2]}). Correct its class_path, install the "
            "package that has it, or start where Python finds it."
        )
    option, key = _OPTION.search(message), _KEY.search(message)
    unrecognised = _UNRECOGNISED.search(message)
    if option and key:
        owner, names = _owner(_CLASS.findall(message[: option.start()]))
        wrong = option[1] or option[2]
        path = _path(key[1], wrong, message)
        return f"there is no option `{path}`{owner}.{_guess(wrong, names)}"
    if option or unrecognised:
        found = option or unrecognised
        wrong = next(group for group in found.groups() if group)  # pyright: ignore[reportOptionalMemberAccess]
        return f"there is no option `{wrong}`.{_guess(wrong, keys)}"
    return message


def _path(key: str, option: str, message: str) -> str:
    """Return the dotted path; an option inside nested classes is preceded by the parameters that lead to it."""
    inner = [k for k in _KEY.findall(message) if k != key]
    return ".".join([key, *inner, option])


def _owner(class_paths: list[str]) -> tuple[str, list[str]]:
    if not class_paths:
        return "", []
    module, _, name = class_paths[-1].rpartition(".")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
        names = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
    except (ImportError, AttributeError, ValueError):
        names = []
    return f" of {name}", names


def _guess(wrong: str, names: list[str]) -> str:
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if not close:  # the misspelt part may be a group: defences.smp_loar.strength
        head = wrong.rpartition(".")[0]
        close = difflib.get_close_matches(head, names, n=1, cutoff=0.7) if head else []
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" It has: {', '.join(names)}." if 0 < len(names) <= 30 else ""
