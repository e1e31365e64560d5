"""``lightning-privacy check --config X --ante-hoc``: rules on a configuration, so that a doomed run costs nothing.

The known ante-hoc and structural rules for trained models (arXiv 2212.01233, 2502.09396) compare parameters with samples
and look for outputs that single records have for themselves. Both are meant for trees, forests and regressions. A deep
network always has more weights than records and its softmax vectors are always unique, so such rules flag every one of
them and tell no two apart. The rules here judge what differs between configurations: how often a record is read and what
holds the fit back, whether the audit that is configured can show anything with the records it will get, and whether the
attack knows the defence. How much of its capacity a network used is measured after training, by the audit `structural`.
"""

import argparse
from typing import Any

from rich.console import Console

from lightning_privacy.cli.ante_hoc_plan import plan_of
from lightning_privacy.cli.ante_hoc_rules import Finding, judge

__all__ = ["WHY_OTHER_RULES", "ante_hoc_options", "report"]

WHY_OTHER_RULES = (
    "Not judged: weights against records, and whether outputs are unique. Every deep network has more weights than "
    "records and no two equal outputs, so rules on these (arXiv 2212.01233, 2502.09396) flag all of them. Judged instead: "
    "repeats and what holds the fit back, and whether the configured audit can show anything. `audits.structural` "
    "measures afterwards how many parameters were used."
)
_ORDER = ("block", "warn", "note", "unknown")
_COLOURS = {"block": "red", "warn": "yellow", "note": "cyan", "unknown": "magenta"}


def ante_hoc_options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take the options of the rules out of a command line.

    Args:
        args: The arguments of ``check``.

    Returns:
        ``ante_hoc`` (whether they are asked for), ``records`` (size of the pool) and ``parameters`` (number of weights) or
        None for either, and the other arguments.

    Example:
        >>> options, rest = ante_hoc_options(["--config", "a.yaml", "--ante-hoc", "--records", "400"])
        >>> options.ante_hoc, options.records, rest
        (True, 400, ['--config', 'a.yaml'])
    """
    parser = argparse.ArgumentParser("lightning-privacy check", add_help=False, allow_abbrev=False)
    parser.add_argument("--ante-hoc", action="store_true")
    if "--ante-hoc" in args:  # without the rules, these are no options of ours
        parser.add_argument("--records", type=int)
        parser.add_argument("--parameters", type=int)
    options, rest = parser.parse_known_args(args)
    return options, rest


def report(cli: Any, records: int | None = None, parameters: int | None = None) -> int:
    """Print what every rule found, worst first.

    Args:
        cli: A `PrivacyCLI` with ``run=False``.
        records: Size of the pool, where the user tells it.
        parameters: Number of weights, where the user tells it.

    Returns:
        1 if a rule blocks the run, else 0.
    """
    findings = judge(plan_of(cli, records, parameters))
    console = Console(soft_wrap=True)
    console.print("[bold]Rules on the configuration[/] (no data, no training)", highlight=False)
    for severity in _ORDER:
        for found in (f for f in findings if f.severity == severity):
            _show(console, found)
    for found in (f for f in findings if f.severity == "ok"):
        console.print(f"[bold]      ok[/]  {found.id}: {found.finding}", highlight=False)
    console.print(WHY_OTHER_RULES, highlight=False)
    blocked = [f.id for f in findings if f.severity == "block"]
    if blocked:
        console.print(f"[bold red]Do not start this run[/]: {', '.join(blocked)}.", highlight=False)
    return int(bool(blocked))


def _show(console: Console, found: Finding) -> None:
    colour = _COLOURS[found.severity]
    console.print(f"[bold {colour}]{found.severity:>8}[/]  [bold]{found.id}[/]: {found.finding}", highlight=False)
    for name, text in (("looked at", found.looked_at), ("why", found.why), ("remedy", found.remedy)):
        if text:
            console.print(f"{name:>18}  {text}", highlight=False, markup=False)
