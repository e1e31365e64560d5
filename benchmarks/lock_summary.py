"""What the runs of `lock_faces.py` show: accuracy with the key beside what attackers reach, by what they have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lock_variants import VARIANTS
from resumable import read_lines
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator

Run = dict[str, Any]
Runs = Mapping[int, Run]
Right = dict[int, tuple[int, int]]
"""By seed: pictures classified rightly, and of how many."""

RESAMPLES = 4000
WITHIN, AT_MOST = 3.0, 0.5  # points below the baseline, and the share of UP: what a lock must keep to hold
LABELS = 10  # of the attackers with few labels

TIERS: dict[str, Callable[[Run], bool]] = {
    "queries": lambda cost: not cost["labels"] and not cost["pairs"],
    "pairs": lambda cost: not cost["labels"] and cost["pairs"] > 0,
    "10 labels": lambda cost: 0 < cost["labels"] <= LABELS,
    "64 labels": lambda cost: cost["labels"] > LABELS,
}
"""What an attacker has, from what an attack costs: queries alone, pictures seen raw and edited, labelled raw pictures."""


def read(path: Path) -> dict[str, dict[int, Run]]:
    """Return runs by variant and seed, in the variants' order; of runs of another length the longest count."""
    found: dict[str, dict[int, Run]] = {name: {} for name in VARIANTS}
    for run in sorted(read_lines(path), key=lambda r: r["epochs"]):
        found.setdefault(run["variant"], {})[run["seed"]] = run
    longest = max((r["epochs"] for by in found.values() for r in by.values()), default=0)
    kept = {name: {s: r for s, r in runs.items() if r["epochs"] == longest} for name, runs in found.items()}
    return {name: runs for name, runs in kept.items() if runs}


def named(run: Run, attack: str) -> Run | None:
    """Return one result of a run, or None."""
    return next((r for r in run["results"] if r["attack"] == attack), None)


def strongest(run: Run, tier: str) -> Run | None:
    """Return the attack that the attacker's own pictures chose among those of a tier, or None where there is none."""
    able = [
        r for r in run["results"] if r["family"] == "lock" and r["attack"] != "strongest" and TIERS[tier](r["cost"])
    ]
    return max(able, key=lambda r: r["own_accuracy"], default=None)


def right(runs: Runs, pick: Callable[[Run], Run | None]) -> Right:
    """Return right answers of the picked result of every seed."""
    found = {seed: pick(run) for seed, run in runs.items()}
    return {seed: (round(r["accuracy"] * r["n"]), r["n"]) for seed, r in found.items() if r is not None}


def resampled(values: Right, site: str) -> Tensor:
    """Return per cent of right answers, the mean over seeds first, then that of resampled seeds and pictures.

    Args:
        values: Right answers.
        site: What is resampled: two quantities of one site are drawn alike.
    """
    generator = seeded_generator(0, site)
    rates = torch.tensor([a / n for a, n in values.values()], dtype=torch.float64)
    counts = torch.tensor([float(n) for _, n in values.values()], dtype=torch.float64)
    drawn = torch.binomial(counts.expand(RESAMPLES, -1), rates.expand(RESAMPLES, -1), generator=generator) / counts
    seeds = torch.randint(len(rates), drawn.shape, generator=seeded_generator(0, "seeds", len(rates)))
    return 100 * torch.cat([rates.mean()[None], drawn.gather(1, seeds).mean(1)])


def interval(values: Tensor) -> tuple[float, float, float]:
    """Return what was found and the 95 % interval of its resamples."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values[0]), low, high


def shown(values: Right) -> str:
    """Return a mean with its interval."""
    if not values:
        return "-"
    mean, low, high = interval(resampled(values, "shown"))
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def mean(values: Right) -> float:
    """Return the mean over seeds in per cent."""
    return 100 * sum(a / n for a, n in values.values()) / len(values)


def up_of(name: str, runs: Runs) -> Right:
    """Return UP; of a model without a lock its accuracy on raw pictures."""
    return right(runs, lambda run: named(run, "no_key" if VARIANTS[name].lock is None else "with_key"))


def scratch(runs: Runs, tier: str) -> Right:
    """Return training without the stolen weights on as many labels; empty for tiers without labels."""

    def pick(run: Run) -> Run | None:
        able = [r for r in run["results"] if r["attack"].startswith("scratch/") and TIERS[tier](r["cost"])]
        return able[-1] if able else None

    return right(runs, pick)


def gain(runs: Runs, tier: str) -> tuple[float, float, float] | None:
    """Return what the stolen weights are worth: the strongest attack of a tier less training without them, in points."""
    with_them, without = right(runs, lambda run: strongest(run, tier)), scratch(runs, tier)
    if not with_them or set(with_them) != set(without):
        return None
    return interval(resampled(with_them, "attack") - resampled(without, "scratch"))


def baseline(runs: Mapping[str, Runs]) -> str | None:
    """Return the model without a lock that pictures for choices prefer; None where there is none."""

    def chosen(name: str) -> float:
        found = [named(run, "no_key") for run in runs[name].values()]
        return sum(r["choice_accuracy"] for r in found if r is not None) / len(found)

    return max((name for name in runs if VARIANTS[name].lock is None), key=chosen, default=None)


def holding(name: str, runs: Runs, base: float | None) -> str:
    """Return against whom a lock holds, in words."""
    if VARIANTS[name].lock is None:
        return "no lock"
    up = mean(up_of(name, runs))
    if base is None or up < base - WITHIN:
        return "no baseline" if base is None else "UP too low"
    held = []
    for tier in TIERS:
        best, worth = right(runs, lambda run, tier=tier: strongest(run, tier)), gain(runs, tier)
        if best and mean(best) <= AT_MOST * up:
            held.append(tier)
        elif best and worth is not None and worth[1] <= 0:
            held.append(f"({tier})")
    return ", ".join(held) or "nobody"


def table(runs: Mapping[str, Runs]) -> list[str]:
    """Return one row a variant: UP, LP, and the strongest attack by what the attacker has."""
    chosen = baseline(runs)
    base = None if chosen is None else mean(up_of(chosen, runs[chosen]))
    lines = [
        f"{'accuracy in %':26} {'seeds':>5} {'UP':>12} {'LP':>12} "
        + " ".join(f"{tier:>12}" + (f" {'scratch':>8} {'worth':>14}" if "labels" in tier else "") for tier in TIERS)
        + "  holds against"
    ]
    for name, mine in runs.items():
        cells = [f"{shown(up_of(name, mine)):>12}", f"{shown(right(mine, lambda run: named(run, 'no_key'))):>12}"]
        for tier in TIERS:
            cells.append(f"{shown(right(mine, lambda run, tier=tier: strongest(run, tier))):>12}")
            if "labels" in tier:
                without, worth = scratch(mine, tier), gain(mine, tier)
                cells.append(f"{mean(without):8.0f}" if without else f"{'-':>8}")
                cells.append(f"{'{:.0f} [{:.0f}, {:.0f}]'.format(*worth) if worth else '-':>14}")
        lines.append(f"{name:26} {len(mine):5d} {' '.join(cells)}  {holding(name, mine, base)}")
    told = "there is no model without a lock" if base is None else f"without a lock {base:.0f} ({chosen})"
    return [
        *lines,
        "",
        f"UP: with the key; LP: raw pictures; {told}.",
        f"A lock holds against an attacker where UP is within {WITHIN:g} points of that and the strongest attack, chosen on",
        f"the attacker's own pictures, reaches at most {AT_MOST:g} of UP. In brackets: it reaches more, and the stolen weights",
        "are not shown to be worth anything (the attack less training from scratch on the same pictures: its interval",
        "reaches 0, which few seeds make easy). Intervals of 95 % by resampling seeds and pictures. Attackers with queries",
        "may have the editor, those with pairs 64 pictures raw and edited.",
    ]


def every_attack(runs: Mapping[str, Runs]) -> list[str]:
    """Return the mean of every attack over seeds, one row an attack, and what the columns are."""
    results = [r for by in runs.values() for run in by.values() for r in run["results"]]
    attacks = list(dict.fromkeys(r["attack"] for r in results))
    names = list(runs)
    lines = [f"{'':20} " + " ".join(f"{i + 1:>4}" for i in range(len(names)))]
    for attack in attacks:
        cells = []
        for name in names:
            found = right(runs[name], lambda run, attack=attack: named(run, attack))
            cells.append(f"{mean(found):4.0f}" if found else f"{'-':>4}")
        lines.append(f"{attack:20} " + " ".join(cells))
    numbers = [f"{i + 1:>3} {name:26} {VARIANTS[name].transform}; {settings(name)}" for i, name in enumerate(names)]
    return [*lines, "", *numbers]


def settings(name: str) -> str:
    """Return a variant's arguments of ModelLock in words."""
    lock = VARIANTS[name].lock
    return "no lock" if lock is None else ", ".join(f"{k} {v}" for k, v in lock.items())


def summary(path: Path) -> str:
    """Return the tables of a file of runs.

    Args:
        path: The runs, one a line.
    """
    runs = read(path)
    late = [
        f"{name}, seed {seed}: {r['attack']} might do better with more steps"
        for name, mine in runs.items()
        for seed, run in mine.items()
        for r in run["results"]
        if r["attack"] == "strongest" and not r["converged"]
    ]
    return "\n".join([*table(runs), "", *every_attack(runs), *([""] if late else []), *late])


def frontier(path: Path, picture: Path) -> None:
    """Draw UP against what attackers reach, one panel for each thing that they may have.

    Args:
        path: The runs, one a line.
        picture: A PNG to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    runs = read(path)
    chosen = baseline(runs)
    figure = Figure(figsize=(4.6 * len(TIERS), 6.2), layout="constrained")
    axes = figure.subplots(1, len(TIERS), squeeze=False)[0]
    colours = mpl.colormaps["tab20"]
    kinds = list(dict.fromkeys(VARIANTS[name].transform for name in runs))
    for axis, tier in zip(axes, TIERS, strict=True):
        for number, name in enumerate(runs):
            best = right(runs[name], lambda run, tier=tier: strongest(run, tier))
            if not best:
                continue
            x, y = (interval(resampled(v, "shown")) for v in (up_of(name, runs[name]), best))
            bars = [[[v[0] - v[1]], [v[2] - v[0]]] for v in (x, y)]
            colour = colours(kinds.index(VARIANTS[name].transform) % 20)
            axis.errorbar(
                x[0], y[0], bars[1], bars[0], marker="o", ms=4, lw=0.6, color=colour, capsize=1,
                label=f"{number + 1} {name}",
            )  # fmt: skip
            axis.annotate(str(number + 1), (x[0], y[0]), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axis.plot([0, 100], [0, 100 * AT_MOST], color="0.5", lw=0.8, ls="--")
        if chosen is not None:
            axis.axvline(mean(up_of(chosen, runs[chosen])) - WITHIN, color="0.5", lw=0.8, ls=":")
        axis.set(title=f"attacker with {tier}", xlabel="UP, %", xlim=(0, 101), ylim=(0, 101))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("strongest attack, %")
    figure.suptitle("A lock that holds lies below the dashed line and right of the dotted one", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    figure.savefig(picture, dpi=110)
