"""Figures of a dossier: ROC with its exact band, score histograms, leak and utility over training."""

from collections.abc import Sequence
from typing import Any

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.low_fpr import tpr_interval_on_roc
from lightning_privacy.report.dossier.models import AttackEntry, Moment
from lightning_privacy.report.dossier.observe import sides
from lightning_privacy.report.figures import to_svg

__all__ = ["history_figure", "new_figure", "roc_band_figure", "score_figure", "svg_of"]

# Okabe and Ito's palette: distinguishable with all common colour-vision deficiencies
_MEMBER, _NONMEMBER, _OTHERS = "#D55E00", "#0072B2", ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6914", "#882255")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "dossier",
}
_FEWEST_ALARMS = 10  # below so many false alarms a rate is the luck of a few records


def roc_band_figure(attacks: Sequence[AttackEntry], top: AttackEntry | None) -> Any | None:
    """Return the membership ROCs on log-log axes, the strongest with its exact pointwise 95 % band.

    The axes begin at the floor 1 / n: a rate below one false alarm cannot be observed.

    Args:
        attacks: The attacks; those without a ROC are left out.
        top: The strongest.

    Returns:
        A matplotlib figure, or None where no membership attack has a ROC and its counts.
    """
    drawn = [(a, n) for a in attacks if a.family == "membership" and a.roc and (n := sides(a)) is not None]
    if not drawn:
        return None
    figure, axes = new_figure()
    floor = min(1 / n[1] for _, n in drawn)
    least = min(floor, *(1 / n[0] for _, n in drawn))
    axes.plot([floor, 1], [floor, 1], color="0.55", linestyle=":", label="guessing")
    others = iter(_OTHERS * len(drawn))
    for attack, (members, nonmembers) in drawn:
        rates = _steps(attack.roc, floor)
        xs, ys = [x for x, _ in rates], [max(y, least) for _, y in rates]
        if top is not None and attack.name == top.name:
            ends = [tpr_interval_on_roc(attack.roc, members, nonmembers, x) for x in xs]
            axes.fill_between(
                xs, [max(low, least) for low, _ in ends], [high for _, high in ends],
                step="post", color=_MEMBER, alpha=0.16, linewidth=0, label="95 % band (exact, at each rate)",
            )  # fmt: skip
            axes.plot(xs, ys, drawstyle="steps-post", color=_MEMBER, linewidth=1.9, zorder=3,
                      label=_text(f"{attack.name} (strongest)"))  # fmt: skip
        else:
            axes.plot(xs, ys, drawstyle="steps-post", color=next(others), linewidth=1.0, label=_text(attack.name))
    supported = min(1.0, _FEWEST_ALARMS * floor)
    axes.axvspan(floor, supported, color="0.94", zorder=0)
    axes.text(floor * 1.08, 1.0, f"fewer than {_FEWEST_ALARMS} false alarms", fontsize=7, color="0.4", va="top")
    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(least, 1.05))
    axes.set(xlabel="false-positive rate (non-members accused)", ylabel="true-positive rate (members found)")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def score_figure(attack: AttackEntry | None, threshold: float | None = None) -> Any | None:
    """Return the histogram of an attack's scores, members against non-members, or None where it kept none.

    Args:
        attack: The attack.
        threshold: Where it calls a record a member.
    """
    if attack is None or attack.histogram is None:
        return None
    figure, axes = new_figure()
    counts = attack.histogram
    for label, side, colour in (("non-members", counts.nonmember, _NONMEMBER), ("members", counts.member, _MEMBER)):
        total = max(1, sum(side))
        shares = [c / total for c in side]
        axes.stairs(shares, counts.edges, color=colour, fill=True, alpha=0.28)
        axes.stairs(shares, counts.edges, color=colour, linewidth=1.4, label=label)
    if threshold is not None and counts.edges[0] <= threshold <= counts.edges[-1]:
        axes.axvline(threshold, color="0.25", linestyle="--", linewidth=1, label="the attack's threshold")
    axes.set(xlabel=_text(f"score of {attack.name} (higher = more member-like)"), ylabel="share of the records")
    axes.set_xlim(counts.edges[0], counts.edges[-1])
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return figure


def history_figure(history: Sequence[Moment]) -> Any | None:
    """Return the leak above the utility over training, or None where there is only one moment of either."""
    leak = [(m.step, m.auroc) for m in history if m.auroc is not None and m.auroc.value is not None]
    utility = [(m.step, m.val_loss) for m in history if m.val_loss is not None]
    if len(leak) < 2 and len(utility) < 2:
        return None
    figure, (above, below) = new_figure(2)
    xs, values = [s for s, _ in leak], [n.value or 0.0 for _, n in leak]
    low = [v if n.low is None else min(v, n.low) for (_, n), v in zip(leak, values, strict=True)]
    high = [v if n.high is None else max(v, n.high) for (_, n), v in zip(leak, values, strict=True)]
    above.fill_between(xs, low, high, color=_MEMBER, alpha=0.16, linewidth=0)
    above.plot(xs, values, color=_MEMBER, marker="o", markersize=3.5)
    above.axhline(0.5, color="0.55", linestyle=":")
    above.set(ylabel="AUROC (strongest)")
    below.plot([s for s, _ in utility], [v for _, v in utility], color=_NONMEMBER, marker="o", markersize=3.5)
    below.set(xlabel="optimizer steps", ylabel="held-out loss")
    return figure


def svg_of(figure: Any) -> str:
    """Return a figure as SVG text that is the same for the same figure."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "dossier"}):
        return to_svg(figure)


def _steps(roc: Sequence[tuple[float, float]], floor: float) -> list[tuple[float, float]]:
    """Return the curve from the floor on: at each false-positive rate its best true-positive rate."""
    best: dict[float, float] = {}
    for x, y in sorted(roc):
        at = max(x, floor) if x > 0 else floor
        best[at] = max(y, best.get(at, 0.0))
    return sorted(best.items())


def _text(name: str) -> str:
    return name.replace("$", r"\$")  # a dollar sign would begin mathematics


def new_figure(rows: int = 1) -> tuple[Any, Any]:
    """Return an empty figure in the page's style, and its axes.

    Args:
        rows: Axes below each other.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise InputError("Figures need matplotlib: pip install 'lightning-privacy[report]'.") from missing
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 4.1), layout="constrained")
        return figure, figure.subplots(rows, sharex=rows > 1)
