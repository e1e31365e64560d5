"""What the runs of `inversion_faces.py` show: accuracy beside what the strongest attack rebuilds, over split seeds."""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from inversion_runs import UNSEEN, VARIANTS
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator

Run = dict[str, Any]
TAPS = ("split", "features", "logits")
RESAMPLES = 4000
EQUAL = 1.0  # points of accuracy

__all__ = ["frontier", "summary"]


def read(path: Path) -> dict[str, dict[int, Run]]:
    """Return runs by variant and seed, in the variants' order."""
    found: dict[str, dict[int, Run]] = {name: {} for name in VARIANTS}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        found.setdefault(run["variant"], {})[run["seed"]] = run
    return {name: runs for name, runs in found.items() if runs}


def strongest(run: Run, tap: str, kind: str = "heldout") -> Run | None:
    """Return the strongest attack's result at a tap, or None where the tap was not attacked."""
    return next((r for r in run["results"] if r["attack"] == f"{tap}/{kind}/strongest_per_victim"), None)


def psnr(runs: Mapping[int, Run], tap: str, kind: str = "heldout") -> dict[int, Tensor]:
    """Return the PSNR of every victim by seed."""
    found = {seed: strongest(run, tap, kind) for seed, run in runs.items()}
    return {seed: torch.tensor(r["per_victim"]["psnr"]) for seed, r in found.items() if r is not None}


def accuracy(runs: Mapping[int, Run]) -> dict[int, float]:
    """Return the share of unseen pictures that are classified rightly, in per cent, by seed."""
    return {
        seed: 100 * sum(run["accuracy"][r][0] for r in UNSEEN) / sum(run["accuracy"][r][1] for r in UNSEEN)
        for seed, run in runs.items()
    }


def over_seeds(values: Mapping[int, Tensor]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % interval, by resampling seeds and, within them, victims."""
    seeds = list(values.values())
    generator = seeded_generator(0, "seeds and victims")
    means = torch.stack(
        [v.double()[torch.randint(len(v), (RESAMPLES, len(v)), generator=generator)].mean(1) for v in seeds], 1
    )
    drawn = torch.randint(len(seeds), (RESAMPLES, len(seeds)), generator=generator)
    low, high = means.gather(1, drawn).mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(torch.stack([v.double().mean() for v in seeds]).mean()), low, high


def shown(values: Mapping[int, Tensor], digits: int = 1) -> str:
    """Return a mean with its interval."""
    if not values:
        return "-"
    mean, low, high = over_seeds(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    listed = list(values)
    return sum(listed) / len(listed)


def metric(runs: Mapping[int, Run], tap: str, name: str) -> str:
    """Return the mean of a metric over seeds."""
    found = [strongest(run, tap) for run in runs.values()]
    listed = [r["metrics"][name][0] for r in found if r is not None and name in r["metrics"]]
    return f"{mean(listed):.2f}" if listed else "-"


def table(runs: Mapping[str, Mapping[int, Run]], kind: str) -> list[str]:
    """Return one row a variant."""
    undefended = runs.get("undefended", {})
    base = mean(run["epoch_seconds"] for run in undefended.values()) if undefended else None
    lines = [
        f"{kind} victims",
        f"{'variant':18} {'seeds':>5} {'accuracy':>8} "
        + " ".join(f"{tap + ' PSNR':>19} {'SSIM':>5} {'found':>5}" for tap in TAPS)
        + f" {'parameters':>10} {'epoch':>6}",
    ]
    for name, mine in runs.items():
        cells = [
            f"{shown(psnr(mine, tap, kind)):>19} {metric(mine, tap, 'ssim'):>5} {metric(mine, tap, 'retrieval'):>5}"
            for tap in TAPS
        ]
        slower = f"{mean(r['epoch_seconds'] for r in mine.values()) / base:5.1f}x" if base else "-"
        parameters = next(iter(mine.values()))["parameters"]
        lines.append(
            f"{name:18} {len(mine):5d} {mean(accuracy(mine).values()):8.1f} {' '.join(cells)} {parameters:10d} {slower:>6}"
        )
    return lines


Placed = tuple[float, dict[int, Tensor]]


def undominated(family: Mapping[str, Mapping[int, Run]], tap: str) -> list[Placed]:
    """Return accuracy and each victim's PSNR of a family's settings, in the order of accuracy.

    A setting that is less accurate than another one of the family and hides no more is left out: nobody would choose it.
    """
    placed = [(mean(accuracy(runs).values()), psnr(runs, tap)) for runs in family.values()]
    level = [float(torch.cat(list(values.values())).mean()) for _, values in placed]

    def chosen(i: int) -> bool:
        return not any(
            placed[j][0] >= placed[i][0]
            and level[j] <= level[i]
            and j != i
            and (placed[j][0], -level[j]) != (placed[i][0], -level[i])
            for j in range(len(placed))
        )

    return sorted((each for i, each in enumerate(placed) if chosen(i)), key=lambda each: each[0])


def at_accuracy(placed: list[Placed], wanted: float) -> Placed:
    """Return what a family does at an accuracy: that of two settings around it, weighted, else its nearest setting."""
    for (low, a), (high, b) in pairwise(placed):
        if low <= wanted <= high:
            share = (wanted - low) / (high - low)
            return wanted, {seed: (1 - share) * a[seed] + share * b[seed] for seed in set(a) & set(b)}
    return min(placed, key=lambda each: abs(each[0] - wanted))


def comparison(runs: Mapping[str, Mapping[int, Run]], tap: str) -> list[str]:
    """Return sparse coding against every other family at equal accuracy, paired by seed and victim."""
    families: dict[str, dict[str, Mapping[int, Run]]] = {}
    for name, mine in runs.items():
        if psnr(mine, tap):
            families.setdefault(VARIANTS[name].family, {})[name] = mine
    lines = [
        f"sparse coding minus others at equal accuracy, dB, {tap}, held-out victims (below 0: sparse coding hides more), and",
        "sparse coding's accuracy minus theirs in points, where no settings of theirs lie around it",
    ]
    for name, mine in runs.items():
        own = psnr(mine, tap)
        if VARIANTS[name].kind != "sparse" or not own:
            continue
        wanted = mean(accuracy(mine).values())
        for family, members in families.items():
            if VARIANTS[next(iter(members))].kind == "sparse":
                continue
            there, other = at_accuracy(undominated(members, tap), wanted)
            paired = {seed: own[seed] - other[seed] for seed in own if seed in other}
            apart = "" if abs(wanted - there) <= EQUAL else f"{wanted - there:+.1f} points"
            lines.append(f"{name:14} {wanted:5.1f} %  {family:28} {shown(paired):24} {apart}".rstrip())
    return lines


def summary(path: Path) -> str:
    """Return the tables of a file of runs.

    Args:
        path: The runs, one a line.
    """
    runs = read(path)
    lines: list[str] = []
    for kind in ("heldout", "private"):
        lines += [*table(runs, kind), ""]
    for tap in TAPS:
        if any(psnr(mine, tap) for mine in runs.values()):
            lines += [*comparison(runs, tap), ""]
    notes = sorted(
        {f"{r['variant']}, seed {r['seed']}: {n}" for m in runs.values() for r in m.values() for n in warnings(r)}
    )
    return "\n".join([*lines, *notes])


def warnings(run: Run) -> list[str]:
    """Return the notes of the strongest results that say that an attack was too weak or did not converge."""
    found = [strongest(run, tap, kind) for tap in TAPS for kind in ("heldout", "private")]
    return [n for r in found if r is not None for n in r["notes"] if "too weak" in n or "not converge" in n]


def frontier(path: Path, picture: Path) -> None:
    """Draw accuracy against what is rebuilt of held-out victims, a line a family.

    Args:
        path: The runs, one a line.
        picture: A PNG to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    runs = read(path)
    taps = [tap for tap in TAPS if any(psnr(mine, tap) for mine in runs.values())]
    figure = Figure(figsize=(5.2 * len(taps), 4.6), layout="constrained")
    axes = figure.subplots(1, len(taps), squeeze=False)[0]
    colours = mpl.colormaps["tab20"]
    families = list(dict.fromkeys(VARIANTS[name].family for name in runs))
    for axis, tap in zip(axes, taps, strict=True):
        for number, family in enumerate(families):
            placed = []
            for name, mine in runs.items():
                if VARIANTS[name].family == family and (found := psnr(mine, tap)):
                    placed.append((mean(accuracy(mine).values()), *over_seeds(found)))
            placed.sort()
            x, y, low, high = (list(column) for column in zip(*placed, strict=True)) if placed else ([], [], [], [])
            sparse = family.startswith("sparse")
            bars = [[m - a for m, a in zip(y, low, strict=True)], [b - m for m, b in zip(y, high, strict=True)]]
            axis.errorbar(
                x, y, bars, marker="s" if sparse else "o", lw=2 if sparse else 1, ms=6 if sparse else 4,
                color=colours(number % 20), label=family, capsize=2,
            )  # fmt: skip
        axis.set(
            title=tap,
            xlabel="accuracy on unseen faces, %",
            ylabel="PSNR of the strongest attack, dB (lower hides more)",
        )
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(picture, dpi=110)
