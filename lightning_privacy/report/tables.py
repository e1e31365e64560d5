"""The table that compares runs, and the sentences that must stand under it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from lightning_privacy.core.results import Metric
from lightning_privacy.report.summary import RunSummary, best_undefended, untuned

__all__ = ["COLUMNS", "MEANING", "Row", "caveats", "compare_rows", "rich_table"]

COLUMNS = (
    "run",
    "val loss (best epoch)",
    "gain kept",
    "attack",
    "AUROC",
    "TPR at 5 % FPR",
    "Frechet distance",
    "s / step",
)

MEANING = (
    "AUROC is how well the strongest attack tells who was in the training set: 0.5 is guessing, 1 is certainty; TPR at "
    "5 % FPR is the share of members it finds while accusing one non-member in twenty. Gain kept is how much of the "
    "undefended fine-tuning's improvement in held-out loss remains."
)
_ONE_SEED = (
    "One run each: the intervals cover which records happened to be evaluated, not another split or another training "
    "seed, so that differences within the intervals show nothing; a claim needs at least 5 split seeds."
)


@dataclass(frozen=True)
class Row:
    """One run in the table, as text.

    Args:
        name: The run's name.
        cells: One text a column after the first; a dash where there is no number.
    """

    name: str
    cells: tuple[str, ...]


def compare_rows(runs: Sequence[RunSummary]) -> list[Row]:
    """Return one row a run, in the order given."""
    base, reference = untuned(runs), best_undefended(runs)
    return [Row(run.name, _cells(run, base, reference)) for run in runs]


def _cells(run: RunSummary, base: float | None, reference: RunSummary | None) -> tuple[str, ...]:
    attack = run.strongest()
    fd = run.measured("quality", "fd_") or run.measured("quality", "fid")
    cost = run.measured("cost", "seconds_per_step")
    share = gain_kept(run.best_val_loss, base, reference.best_val_loss if reference else None)
    return (
        "-" if run.best_val_loss is None else f"{run.best_val_loss:.4f}",
        "-" if share is None else f"{100 * share:.0f} %",
        "-" if attack is None else attack.attack,
        "-" if attack is None else number(attack.metrics["auroc"]),
        "-" if attack is None else number(attack.metrics.get("tpr_at_fpr_0.05")),
        "-" if fd is None else number(fd[1], 1),
        "-" if cost is None else number(cost[1]),
    )


def gain_kept(best: float | None, base: float | None, reference: float | None) -> float | None:
    """Return the share of the undefended gain in held-out loss that a run keeps.

    Args:
        best: The run's held-out loss at its best epoch.
        base: That of the model before training.
        reference: That of the undefended run at its best epoch.

    Example:
        >>> gain_kept(0.275, base=0.285, reference=0.2725)
        0.8
    """
    if best is None or base is None or reference is None or base <= reference:
        return None
    return round((base - best) / (base - reference), 6)


def number(metric: Metric | None, digits: int = 3) -> str:
    """Return a number with its interval; a dagger marks one that its sample cannot support.

    Example:
        >>> number(Metric(0.6124, 0.5, 0.71))
        '0.612 [0.500, 0.710]'
    """
    if metric is None or metric.value != metric.value:
        return "-"
    text = f"{metric.value:.{digits}f}"
    if metric.low is not None and metric.high is not None:
        text += f" [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"
    return text if metric.valid else f"{text} †"


def caveats(runs: Sequence[RunSummary]) -> list[str]:
    """Return what a reader must know before believing the table: seeds, splits, controls, doubtful numbers."""
    said = [_ONE_SEED]
    reference = best_undefended(runs)
    if len({h for r in runs for h in r.split_hashes}) > 1:
        said.append("The runs are on different splits: their numbers are not about the same records.")
    if untuned(runs) is None:
        said.append("No held-out loss before training is known (a run of no steps), so that no gain can be computed.")
    if reference is None:
        said.append("There is no undefended run among these: nothing says what the defences achieve.")
    else:
        attack = reference.strongest()
        low = attack.metrics["auroc"].low if attack else None
        if attack is None:
            said.append(f"The undefended run ({reference.name}) was not attacked: nothing says that there is a leak.")
        elif low is None or low <= 0.5:
            said.append(
                f"The undefended run ({reference.name}) does not measurably leak: defences can show nothing here."
            )
    for run in runs:
        here = [r for r in run.results if r.step == run.steps]
        if here and run.strongest() is None:
            said.append(f"{run.name}: no attack was chosen on fit data, so none is shown as the strongest.")
        stuck = [r.attack for r in here if not r.converged]
        if stuck:
            said.append(f"{run.name}: the attacker did not converge ({', '.join(stuck)}), so the leak may be larger.")
    said += _notes(runs)
    if any("†" in cell for row in compare_rows(runs) for cell in row.cells):
        said.append("† too few records for this number.")
    return said


def _notes(runs: Sequence[RunSummary]) -> list[str]:
    """Return the notes of the last results, each once, with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run in runs:
        for note in dict.fromkeys(n for r in run.results if r.step == run.steps for n in r.notes):
            about.setdefault(note, []).append(run.name)
    return [note if len(names) == len(runs) else f"{', '.join(names)}: {note}" for note, names in about.items()]


def rich_table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place in (0, 3) else "right", no_wrap=place != 3)
    for row in rows:
        table.add_row(row.name, *row.cells)
    return table
