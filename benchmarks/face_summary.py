"""What the runs of `smp_lora_faces.py` show: privacy and utility over split seeds, and differences on equal records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_privacy.metrics.membership import Scores, paired_difference, pool_over_seeds

Run = dict[str, Any]

__all__ = ["summary"]


def summary(path: Path, frontiers: Sequence[str]) -> str:
    """Return a table over variants, and our settings against each early-stopping frontier.

    Args:
        path: The runs, one a line.
        frontiers: Undefended variants that were attacked along their way.
    """
    runs: dict[str, dict[int, Run]] = {}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        runs.setdefault(run["variant"], {})[run["seed"]] = run
    undefended = runs.get("undefended", {})
    lines = [
        f"{'variant':38} {'seeds':>5} {'strongest attack, last epoch':>28} {'largest of all':>14} {'gain: best, end':>15} "
        f"{'attack on auxiliaries':>28}"
    ]
    untuned = [strongest(run, 0) for run in undefended.values()]
    if untuned:
        lines.append(f"{'untuned':38} {len(untuned):5d} {interval(pool_over_seeds(untuned)):>28} {'':>14} {'0 %':>15}")
    for name, mine in runs.items():
        pooled = pool_over_seeds([strongest(run, last(run)) for run in mine.values()])
        worst = sum(max(a["auroc"] for a in attacks(run, last(run))) for run in mine.values()) / len(mine)
        share = gains_kept(mine, undefended)
        auxiliaries = [chosen(run["of_auxiliaries"]) for run in mine.values() if "of_auxiliaries" in run]
        own = interval(pool_over_seeds(auxiliaries)) if auxiliaries else ""
        lines.append(f"{name:38} {len(mine):5d} {interval(pooled):>28} {worst:14.3f} {share:>15} {own:>28}")
    for defended in (name for name in ("recommended", "recommended_augmented", "fast") if name in runs):
        lines += [
            "",
            f"strongest attack of `{defended}` minus a frontier's at its first epoch with an equal or lower val loss:",
        ]
        lines += [difference(runs[defended], runs[name], name) for name in frontiers if name in runs]
    lines += ["", *(curve(name, runs[name]) for name in frontiers if name in runs)]
    return "\n".join(lines) + "\n"


def difference(recommended: dict[int, Run], frontier: dict[int, Run], name: str) -> str:
    first, second, stopped = [], [], []
    for seed in sorted(recommended.keys() & frontier.keys()):
        run, other = recommended[seed], frontier[seed]
        epoch = first_epoch_at(other, run["val"][last(run)])
        first.append(strongest(run, last(run)))
        second.append(strongest(other, epoch))
        stopped.append(int(epoch))
    if not first:
        return f"{name}: no seed in common"
    return f"{name:38} {interval(paired_difference(first, second)):>28}   stopped at epochs {stopped}"


def curve(name: str, mine: dict[int, Run]) -> str:
    """Return the frontier's mean val loss and mean AUROC at each kept epoch."""
    epochs = sorted({int(e) for run in mine.values() for e in run["attacks"]})
    points = []
    for epoch in map(str, epochs):
        have = [run for run in mine.values() if epoch in run["attacks"]]
        auroc = pool_over_seeds([strongest(run, epoch) for run in have], bootstrap=0).value
        points.append(f"{epoch}: {sum(run['val'][epoch] for run in have) / len(have):.4f}/{auroc:.3f}")
    return f"{name}, epoch: val loss/AUROC  " + "  ".join(points)


def attacks(run: Run, epoch: str) -> list[dict[str, Any]]:
    return run["attacks"][epoch]


def strongest(run: Run, epoch: str | int) -> Scores:
    """Return the scores of the attack that was chosen on records which are not scored."""
    return chosen(attacks(run, str(epoch)))


def chosen(results: list[dict[str, Any]]) -> Scores:
    one = next(attack for attack in results if attack["strongest"])
    return tuple(torch.tensor(one[side], dtype=torch.float64) for side in ("member", "nonmember"))  # pyright: ignore[reportReturnType]


def last(run: Run) -> str:
    return max(run["attacks"], key=int)


def gain(run: Run) -> float:
    """Return how much the held-out loss fell, at the best epoch on `val`."""
    return run["val"]["0"] - min(run["val"].values())


def gains_kept(mine: dict[int, Run], undefended: dict[int, Run]) -> str:
    """Return the mean share of the undefended gain that is kept at the best epoch on `val`, and at the attacked one."""
    common = [(run, gain(undefended[seed])) for seed, run in mine.items() if seed in undefended]
    if not common:
        return "-"
    best = sum(gain(run) / whole for run, whole in common) / len(common)
    end = sum((run["val"]["0"] - run["val"][last(run)]) / whole for run, whole in common) / len(common)
    return f"{100 * best:.0f} %, {100 * end:.0f} %"


def first_epoch_at(run: Run, loss: float) -> str:
    """Return the first attacked epoch whose val loss is no higher; the best one if none is."""
    ordered = sorted(run["attacks"], key=int)
    return next((e for e in ordered if run["val"][e] <= loss), min(ordered, key=lambda e: run["val"][e]))


def interval(metric: Any) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
