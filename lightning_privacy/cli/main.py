"""The command ``lightning-privacy``: finds the verb, imports what that verb needs, turns our errors into one line."""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from lightning_privacy.cli.quiet import without_known_noise
from lightning_privacy.errors import PrivacyError

__all__ = ["main"]

_VERBS: dict[str, tuple[str, str]] = {
    "fit": ("train:run", "train by a recipe: --config recipes/NAME.yaml"),
    "validate": ("train:run", "one pass over the validation data"),
    "test": ("train:run", "one pass over the test data"),
    "predict": ("train:run", "one pass over the prediction data"),
    "federate": (
        "federate:run",
        "train by a recipe as several clients on this machine, by Flower: --clients 3 --rounds 5",
    ),
    "check": ("check:run", "order, conflicts and costs of a recipe; no data, no GPU, no weights"),
    "audit": ("audit:run", "attacks on a finished run: audit runs/NAME"),
    "compare": ("compare:compare", "one table of several runs, beside each other"),
    "lock-suggest": ("lock_suggest:run", "which of several locked models keeps accuracy and keeps others out"),
    "report": ("compare:report", "report.html in each run's folder"),
    "dossier": ("dossier:run", "the files for a release: verdict, numbers, page, model card"),
    "audit-secrets": (
        "audit_secrets:run",
        "does a file or folder hold a secret of a vault? audit-secrets PATH --vault VAULT",
    ),
    "gate": ("gate:run", "may it be released? Exits with the verdict of a policy"),
    "recipes": ("listings:recipes", "ls, show NAME or cp NAME DESTINATION: the shipped YAMLs"),
    "defences": ("listings:defences", "ls or show NAME: the registered defences and their method cards"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The arguments without the program's name; those of the process if None.

    Returns:
        0 if all went well, the verdict's code for `gate` (10, 20 or 30), 20 where `lock-suggest` finds no lock that holds,
        1 for input or a combination that we refuse or for a secret that `audit-secrets` found, 130 if interrupted.
        Arguments that cannot be parsed leave by ``SystemExit(2)``, as with argparse.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    verb, *rest = args
    if verb == "--version":
        print(version("lightning-privacy"))
        return 0
    if verb not in _VERBS:
        print(f"error: there is no verb `{verb}`. Verbs: {', '.join(_VERBS)}.", file=sys.stderr)
        return 2
    module, _, function = _VERBS[verb][0].partition(":")
    try:
        handler = getattr(importlib.import_module(f"lightning_privacy.cli.{module}"), function)
        with without_known_noise():
            return int(handler(verb, rest) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as failure:
        if os.environ.get("LIGHTNING_PRIVACY_DEBUG") == "1" or not _is_refusal(failure):
            raise
        print(f"error: {failure}", file=sys.stderr)
        return 1


def _is_refusal(failure: Exception) -> bool:
    """Return whether an exception speaks to the user; Lightning's own is known by name, so as not to import it here."""
    names = {f"{c.__module__}.{c.__name__}" for c in type(failure).__mro__}
    return isinstance(failure, PrivacyError) or (
        "lightning.fabric.utilities.exceptions.MisconfigurationException" in names
    )


def _help() -> str:
    width = max(map(len, _VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, (_, text) in _VERBS.items())
    return (
        "usage: lightning-privacy VERB [options]\n\n"
        "Train with privacy defences, attack the result, compare. VERB --help lists the options of a verb.\n\n"
        f"{verbs}\n\n"
        "Exit codes: 0 fine, 1 refused (LIGHTNING_PRIVACY_DEBUG=1 adds the traceback to the reason), 2 wrong usage;\n"
        "of gate also 10 conditional, 20 no_go, 30 insufficient_evidence; of lock-suggest 20 none holds; of audit-secrets 1 "
        "found, 2 not searched."
    )
