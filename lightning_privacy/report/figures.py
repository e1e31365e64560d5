"""Figures of a comparison: logarithmic ROC, privacy against utility, held-out loss. No pyplot, no global state."""

import io
import math
from collections.abc import Sequence
from typing import Any

from lightning_privacy.errors import InputError
from lightning_privacy.report.summary import RunSummary, best_undefended

__all__ = ["loss_figure", "privacy_utility_figure", "roc_figure", "to_svg"]

# Okabe and Ito's palette: distinguishable with all common colour-vision deficiencies
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6914", "#882255")
_LEAST_RATE = 1e-3
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def roc_figure(runs: Sequence[RunSummary]) -> Any | None:
    """Return the ROC of each run's strongest attack on log-log axes, or None where there is none."""
    curves = [(i, run, run.strongest()) for i, run in enumerate(runs)]
    drawn = [(i, run, a) for i, run, a in curves if a is not None and a.roc]
    if not drawn:
        return None
    figure, axes = _new()
    records = max(max(a.n.values(), default=1) for _, _, a in drawn)
    least = max(_LEAST_RATE, 10 ** math.floor(math.log10(1 / records)))  # one false alarm is the least there can be
    axes.plot([least, 1], [least, 1], color="0.6", linestyle=":", label="guessing")
    for i, run, attack in drawn:
        xs, ys = zip(*[(max(x, least), max(y, least)) for x, y in attack.roc], strict=True)
        name = f"{run.name} ({attack.attack})"
        axes.plot(xs, ys, color=_colour(i, run), linewidth=1.6, drawstyle="steps-post", label=name)
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05))
    axes.set(xlabel="false-positive rate (non-members accused)", ylabel="true-positive rate (members found)")
    nonmembers = min(a.n.get("holdout", records) for _, _, a in drawn)
    if 10 / nonmembers > least:
        axes.axvspan(least, min(1.0, 10 / nonmembers), color="0.94", zorder=0)
        axes.text(least * 1.06, 0.9, "fewer than 10 false alarms", fontsize=7, color="0.45", va="top")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def privacy_utility_figure(runs: Sequence[RunSummary]) -> Any | None:
    """Return attack AUROC against held-out loss, with the path of the undefended run as the frontier to beat."""
    points = [(i, run, run.val_loss_at(run.steps), run.strongest()) for i, run in enumerate(runs)]
    drawn = [(i, run, loss, attack) for i, run, loss, attack in points if loss is not None and attack is not None]
    frontier = _frontier(runs)
    if len(drawn) + len(frontier) < 2:
        return None
    figure, axes = _new()
    if len(frontier) > 1:
        axes.plot(*zip(*frontier, strict=True), color="0.45", linestyle="--", marker=".", linewidth=1.1, zorder=1,
                  label="undefended, stopped earlier")  # fmt: skip
    for i, run, loss, attack in drawn:
        auroc = attack.metrics["auroc"]
        low, high = (auroc.value if end is None else end for end in (auroc.low, auroc.high))
        bars = [[max(0.0, auroc.value - low)], [max(0.0, high - auroc.value)]]
        axes.errorbar(loss, auroc.value, yerr=bars, color=_colour(i, run), marker=_marker(run), markersize=7, capsize=3,
                      linestyle="none", zorder=3, label=run.name)  # fmt: skip
    axes.axhline(0.5, color="0.6", linestyle=":", zorder=0, label="guessing")
    axes.set(xlabel="held-out denoising loss (lower is better)", ylabel="AUROC of the strongest attack (0.5 is best)")
    axes.annotate("better", xy=(0.02, 0.03), xytext=(0.13, 0.14), xycoords="axes fraction", fontsize=8, color="0.35",
                  arrowprops={"arrowstyle": "->", "color": "0.35"})  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def loss_figure(runs: Sequence[RunSummary]) -> Any | None:
    """Return the held-out loss over the steps, or None where no run has two values."""
    drawn = [(i, run) for i, run in enumerate(runs) if len(run.val_loss) > 1]
    if not drawn:
        return None
    figure, axes = _new()
    for i, run in drawn:
        axes.plot(
            *zip(*sorted(run.val_loss.items()), strict=True), color=_colour(i, run), linewidth=1.5, label=run.name
        )
    axes.set(xlabel="optimizer steps", ylabel="held-out denoising loss")
    axes.legend(frameon=False, fontsize=8)
    return figure


def to_svg(figure: Any) -> str:
    """Return a figure as SVG text without an XML header, to be put into a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _frontier(runs: Sequence[RunSummary]) -> list[tuple[float, float]]:
    """Return the path of the best undefended run, with points from runs that are the same but stopped earlier."""
    reference = best_undefended(runs)
    if reference is None:
        return []
    same = [run for run in runs if not run.defences and _trajectory(run) == _trajectory(reference)]
    found: dict[int, tuple[float, float]] = {}
    for run in same:
        for step in run.attacked_steps():
            loss, attack = run.val_loss_at(step), run.strongest(step)
            if loss is not None and attack is not None:
                found[step] = (loss, attack.metrics["auroc"].value)
    return [found[step] for step in sorted(found)]


def _trajectory(run: RunSummary) -> list[Any]:
    """Return what decides a run's weights at a step, whatever its last step is."""
    return [*(run.settings.get(key) for key in ("model", "data", "seed_everything")), sorted(run.split_hashes)]


def _new() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise InputError("Figures need matplotlib: pip install 'lightning-privacy[report]'.") from missing
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.9), layout="constrained")
        return figure, figure.add_subplot()


def _colour(place: int, run: RunSummary) -> str:
    return "0.35" if run.steps == 0 else _COLOURS[place % len(_COLOURS)]


def _marker(run: RunSummary) -> str:
    return "o" if run.defences else "s"
