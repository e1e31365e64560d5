"""Tables and picture of a leakage grid: what every attack makes of every defence, and what that costs in accuracy.

Aligned SSIM has brightness and contrast of each channel fitted to the truth: normalisation hides them with or without a key.
`strongest_per_victim` is what an attacker who cannot see the truth would hand in; `best attack` has the largest mean, chosen
with hindsight, so that nothing is ascribed to a defence that is owed to a bad choice.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resumable import read_lines

Run = dict[str, Any]
OWN = ("defended", "undefended")
STRONGEST = "strongest_per_victim"
COLUMNS = (
    STRONGEST,
    "dlg",
    "inverting_gradients",
    "grnn",
    "latent",
    "wrong_key",
    "key_regression",
    "known_lock",
    "joint",
    "joint_pooled",
    "label_inference",
)


def found(run: Run, state: str) -> dict[str, dict[str, Run]]:
    """Return the results of a state by condition and attack; what defences know of themselves under its own name."""
    prefix = f"{state}/batch{run['batch']}/"
    by: dict[str, dict[str, Run]] = {}
    for result in run["results"]:
        if result["attack"].startswith(prefix):
            condition, attack = result["attack"].removeprefix(prefix).split("/", 1)
            by.setdefault("own" if condition in OWN else condition, {})[attack] = result
    return by


def shown(result: Run | None, metric: str) -> str:
    """Return a mean over updates with its interval."""
    if result is None or metric not in result["metrics"]:
        return "-"
    each = result["metrics"][metric]
    return f"{each['value']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"


def best_of(attacks: dict[str, Run], names: Iterable[str] | None = None) -> Run | None:
    """Return the result with the largest mean aligned SSIM, of some attacks or of all."""
    among = [
        attacks[name] for name in (attacks if names is None else names) if "aligned_ssim" in attacks[name]["metrics"]
    ]
    return max(among, key=lambda each: each["metrics"]["aligned_ssim"]["value"], default=None)


def row(run: Run, condition: str, attacks: dict[str, Run], columns: Sequence[str]) -> str:
    """Return one line of the table: aligned SSIM of every attack, then how many pictures the best one lets be told apart."""
    name = run["variant"] if condition == "own" else f"  {condition}"
    cells = [
        shown(attacks.get(each), "label_accuracy" if each == "label_inference" else "aligned_ssim") for each in columns
    ]
    best, informed = best_of(attacks), best_of(attacks, [n for n in attacks if n not in (*COLUMNS, "first_layer")])
    accuracy = f"{100 * run['accuracy']:.1f} %" if condition == "own" else ""
    cells = [shown(best, "aligned_ssim"), *cells, shown(informed, "aligned_ssim"), shown(best, "retrieval")]
    return f"{name:18} {accuracy:>7} " + " ".join(f"{c:>20}" for c in cells)


def summary(kept: Path) -> str:
    """Return all tables of a file of runs: one a network, kind of picture, batch size, state and seed.

    Args:
        kept: The runs, one a line.
    """
    runs = read_lines(kept)
    lines: list[str] = []
    for place in sorted({(r["network"], r["data"], r["batch"], r["seed"]) for r in runs}):
        mine = [r for r in runs if (r["network"], r["data"], r["batch"], r["seed"]) == place]
        for state in ("initial", "trained"):
            every = [(run, name, attacks) for run in mine for name, attacks in found(run, state).items()]
            if not every:
                continue
            columns = [each for each in COLUMNS if any(each in attacks for _, _, attacks in every)]
            names = ["best attack", *columns, "knows the defence", "retrieved"]
            network, data, batch, seed = place
            lines += [
                f"{network} on {data}, {batch} records an update, {state}, seed {seed}: aligned SSIM",
                f"{'':18} {'acc.':>7} " + " ".join(f"{c:>20}" for c in names),
                *(row(run, name, attacks, columns) for run, name, attacks in every),
                "",
            ]
    notes = {
        f"{r['variant']}: {n}"
        for r in runs
        for x in r["results"]
        for n in x["notes"]
        if "proves nothing" in n or "no evidence" in n
    }
    return "\n".join([*lines, *sorted(notes)])


def frontier(kept: Path, picture: Path) -> None:
    """Draw accuracy against the strongest attack's SSIM on single records, before and after training.

    Args:
        kept: The runs, one a line.
        picture: A PNG to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    runs = [r for r in read_lines(kept) if r["batch"] == 1]
    places = sorted({(r["network"], r["data"]) for r in runs})
    if not places:
        return
    figure = Figure(figsize=(5 * len(places), 4.5), layout="constrained")
    axes = figure.subplots(1, len(places), squeeze=False)[0]
    for axis, place in zip(axes, places, strict=True):
        names = list(dict.fromkeys(r["variant"] for r in runs))
        for number, name in enumerate(names):
            for state, marker in (("initial", "o"), ("trained", "s")):
                for r in runs:
                    best = best_of(found(r, state).get("own", {}))
                    if (r["network"], r["data"], r["variant"]) != (*place, name) or best is None:
                        continue
                    at = best["metrics"]["aligned_ssim"]
                    bars = [[at["value"] - at["low"]], [at["high"] - at["value"]]]
                    axis.errorbar(
                        100 * r["accuracy"], at["value"], bars, marker=marker, color=f"C{number}", capsize=2,
                        label=f"{name}, {state}",
                    )  # fmt: skip
        axis.set(
            title=" on ".join(place), xlabel="accuracy on unseen pictures, %", ylabel="aligned SSIM of the best attack"
        )
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=6)
    figure.savefig(picture, dpi=110)
