"""What a run folder says, as plain values: the only thing that tables and figures read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.errors import InputError
from lightning_privacy.report.run_settings import group_of, read_settings

__all__ = ["RunSummary", "best_undefended", "logged_numbers", "summarise", "untuned"]


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Args:
        run: Its folder.
        defences: Settings by defence; empty for an undefended run.
        settings: The whole configuration.
        val_loss: Held-out loss by optimizer step.
        results: Attack results.
        measurements: Quality, utility and cost.
    """

    run: RunFolder
    defences: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    val_loss: dict[int, float]
    results: tuple[AttackResult, ...]
    measurements: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.run.name

    @property
    def audits(self) -> dict[str, dict[str, Any]]:
        """Settings by audit, as configured."""
        return group_of(self.settings, "audits")

    @property
    def steps(self) -> int:
        """Optimizer steps of the model that was last attacked, else of the last validation."""
        return max([r.step for r in self.results] or list(self.val_loss) or [0])

    @property
    def best_val_loss(self) -> float | None:
        """Held-out loss at its best epoch."""
        return min(self.val_loss.values(), default=None)

    @property
    def split_hashes(self) -> set[str]:
        """Splits that the results are on: one, unless the folder was misused."""
        return {r.split_hash for r in self.results if r.split_hash}

    def attacked_steps(self) -> list[int]:
        """Return the steps at which the model was attacked, ascending."""
        return sorted({r.step for r in self.results})

    def strongest(self, step: int | None = None) -> AttackResult | None:
        """Return the strongest membership attack at a step (None: the last), as chosen on the attacker's fit data.

        Where no result says that it was chosen, the best one on fit data counts. Results without either are not
        ranked by what they reach on the evaluation records, which would choose after looking: then None.
        """
        at = self.steps if step is None else step
        here = [r for r in self.results if r.family == "membership" and r.step == at and "auroc" in r.metrics]
        marked = [r for r in here if r.strongest]
        if marked:
            return marked[-1]
        fitted = [r for r in here if r.fit_auroc is not None]
        return max(fitted, key=lambda r: r.fit_auroc or 0.0) if fitted else here[0] if len(here) == 1 else None

    def val_loss_at(self, step: int) -> float | None:
        """Return the held-out loss at a step; one step of difference is Lightning's counting."""
        return next((self.val_loss[s] for s in (step, step - 1, step + 1) if s in self.val_loss), None)

    def measured(self, kind: str, prefix: str) -> tuple[str, Metric] | None:
        """Return name and value of the last measurement of a kind whose name starts so, controls left out."""
        named = [m for m in self.measurements if m["kind"] == kind and m["name"].startswith(prefix)]
        found = [m for m in named if not m["name"].endswith(("_floor", "_member"))]
        if not found:
            return None
        last = max(found, key=lambda m: m["step"])
        value = float("nan") if last["value"] is None else float(last["value"])
        return last["name"], Metric(value, last["low"], last["high"], last["valid"], last["reason"])


def summarise(run: RunFolder) -> RunSummary:
    """Read a run's folder.

    Raises:
        InputError: its configuration, or a line of its results, measurements or metrics, cannot be read.
    """
    settings = read_settings(run.config)
    measurements = run.measurements()
    losses = logged_numbers(run, "val/loss")
    losses |= {
        m["step"]: m["value"]
        for m in measurements
        if m["kind"] == "utility" and m["name"] == "val_loss" and m["value"] is not None
    }
    return RunSummary(
        run=run,
        defences=group_of(settings, "defences"),
        settings=settings,
        val_loss=losses,
        results=tuple(run.results()),
        measurements=tuple(measurements),
    )


def logged_numbers(run: RunFolder, name: str) -> dict[int, float]:
    """Return a logged scalar by step, the last of each step.

    Args:
        run: The run.
        name: Its column in ``metrics.csv``.

    Raises:
        InputError: the file cannot be read, or a value is no number.
    """
    found: dict[int, float] = {}
    for row in read_metrics(run.metrics):
        if not row.get(name) or not row.get("step"):
            continue
        try:
            found[int(row["step"])] = float(row[name])
        except ValueError as wrong:
            raise InputError(
                f"{run.metrics}: `{name}` at step {row['step']} is {row[name][:40]!r}, which is no number. Correct or remove "
                "that line."
            ) from wrong
    return found


def untuned(runs: Sequence[RunSummary]) -> float | None:
    """Return the held-out loss before any training: of a run of no steps, or at step 0 of any run."""
    return next((r.val_loss[0] for r in sorted(runs, key=lambda r: r.steps) if 0 in r.val_loss), None)


def best_undefended(runs: Sequence[RunSummary]) -> RunSummary | None:
    """Return the undefended, trained run with the lowest held-out loss: the reference for privacy and utility."""
    found = [r for r in runs if not r.defences and r.steps > 0 and r.best_val_loss is not None]
    return min(found, key=lambda r: r.best_val_loss or 0.0) if found else None
