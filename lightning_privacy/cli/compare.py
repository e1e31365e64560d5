"""The verbs compare and report: what the folders of runs say, beside each other."""

import argparse
from pathlib import Path

from rich.console import Console

from lightning_privacy.core.run_folder import RunFolder

__all__ = ["compare", "report"]


def compare(verb: str, args: list[str]) -> int:
    """Print one table of several runs, and what must be said with it."""
    parser = argparse.ArgumentParser(f"lightning-privacy {verb}", description="One table of several runs.")
    parser.add_argument(
        "runs", nargs="+", help="folders of runs; files among them are passed over, so that runs/* works"
    )
    parser.add_argument("--html", type=Path, help="also write a page with figures and pictures")
    chosen = parser.parse_args(args)
    from lightning_privacy.report.summary import summarise
    from lightning_privacy.report.tables import MEANING, caveats, compare_rows, rich_table

    runs = [summarise(RunFolder.open(path)) for path in _folders(chosen.runs)]
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a table in a file is not to be cut
    console.print(rich_table(compare_rows(runs)))
    console.print()
    for sentence in (MEANING, *caveats(runs)):
        console.print(sentence, highlight=False, soft_wrap=not console.is_terminal)
    if chosen.html is not None:
        from lightning_privacy.report.html import write_report

        console.print(str(write_report(chosen.html, runs, "Runs compared")), highlight=False)
    return 0


def report(verb: str, args: list[str]) -> int:
    """Write report.html into each run's folder, or one page for all of them."""
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}", description="Pages with tables, figures and pictures."
    )
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, help="one page for all runs instead of report.html in each")
    parser.add_argument("--title", help="the heading")
    chosen = parser.parse_args(args)
    from lightning_privacy.report.html import write_report
    from lightning_privacy.report.summary import summarise

    runs = [summarise(RunFolder.open(path)) for path in _folders(chosen.runs)]
    if chosen.out is not None:
        print(write_report(chosen.out, runs, chosen.title or "Runs compared"))
        return 0
    for run in runs:
        print(write_report(run.run.report, [run], chosen.title or run.name))
    return 0


def _folders(paths: list[str]) -> list[str]:
    """Leave out files that a shell's ``runs/*`` brought along; a file that was named alone stays, and is refused."""
    return [p for p in paths if not Path(p).is_file()] or paths
