"""The verb lock-suggest: which of several locked models keeps its accuracy and keeps others out."""

import argparse
from dataclasses import dataclass

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError

__all__ = ["Candidate", "read_candidate", "run", "suggest"]

NONE_HOLDS = 20
_UNLOCKED = "No lock was trained"


@dataclass(frozen=True)
class Candidate:
    """What a run's lock audit found.

    Args:
        name: Of the run's folder.
        locked: Whether a lock was trained.
        up: Accuracy with the key, from 0 to 1.
        lp: Accuracy of raw pictures.
        best: The largest that an attacker reached, by the attack that its own pictures chose.
        attack: That attack.
    """

    name: str
    locked: bool
    up: float
    lp: float
    best: float
    attack: str


def read_candidate(path: str) -> Candidate:
    """Read the last lock audit of a run.

    Args:
        path: The run's folder.

    Raises:
        InputError: it has none.
    """
    folder = RunFolder.open(path)
    every: dict[str, AttackResult] = {
        r.attack: r for r in folder.results() if r.family in ("lock", "lock_reference")
    }  # later audits stand further down
    if lacking := [name for name in ("with_key", "strongest", "no_key") if name not in every]:
        raise InputError(
            f"{path} has no result of a lock audit ({', '.join(lacking)}). Add `audits: {{lock: {{}}}}` to its recipe, or run "
            f"`lightning-privacy audit {path}` with it."
        )
    best = every["strongest"]
    return Candidate(
        folder.path.name,
        not any(_UNLOCKED in note for note in best.notes),
        every["with_key"].metrics["accuracy"].value,
        every["no_key"].metrics["accuracy"].value,
        best.metrics["accuracy"].value,
        str(best.extra["chosen_attack"]),
    )


def suggest(candidates: list[Candidate], baseline: float, within: float, at_most: float) -> Candidate | None:
    """Return the locked run in which an attacker reaches the smallest share of UP, among those whose UP is near the baseline.

    Args:
        candidates: Of the same data.
        baseline: Accuracy without a lock, from 0 to 1.
        within: How far below it UP may lie.
        at_most: Share of UP that an attacker may reach.

    Returns:
        None where no run meets both.

    Example:
        >>> good = Candidate("a", True, 0.9, 0.1, 0.2, "fine_tune")
        >>> suggest([good, Candidate("b", True, 0.9, 0.1, 0.8, "no_key")], 0.92, 0.03, 0.5).name
        'a'
    """
    near = [c for c in candidates if c.locked and c.up > 0 and c.up >= baseline - within]
    meeting = [c for c in near if c.best <= at_most * c.up]
    return min(meeting, key=lambda c: c.best / c.up, default=None)


def run(verb: str, args: list[str]) -> int:
    """Print what each run's lock is worth, and the one to take; 20 where none holds."""
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}", description="Which of several runs with a lock audit has a lock worth its cost?"
    )
    parser.add_argument("runs", nargs="+", help="folders of runs; one of them without a lock, or give --baseline")
    parser.add_argument(
        "--baseline", type=float, help="accuracy without a lock, 0 to 1; else that of the run without one"
    )
    parser.add_argument("--within", type=float, default=0.03, help="how far UP may lie below the baseline")
    parser.add_argument("--at-most", type=float, default=0.5, help="share of UP that an attacker may reach")
    chosen = parser.parse_args(args)
    candidates = [read_candidate(path) for path in chosen.runs]
    baseline = chosen.baseline
    if baseline is None:
        open_runs = [c.lp for c in candidates if not c.locked]
        if not open_runs:
            raise InputError(
                "lock-suggest compares with a model without a lock: name a run with `--defences.model_lock null "
                "--data.inner.locked false` too, or give --baseline."
            )
        baseline = max(open_runs)
    width = max(len(c.name) for c in candidates)
    print(f"{'run':{width}}     UP     LP  strongest attack without the key")
    for c in candidates:
        print(f"{c.name:{width}} {100 * c.up:5.1f}% {100 * c.lp:5.1f}%  {100 * c.best:5.1f}% by {c.attack}")
    found = suggest(candidates, baseline, chosen.within, chosen.at_most)
    wanted = f"UP of at least {100 * (baseline - chosen.within):.1f}% and no attack above {chosen.at_most:g} of UP"
    if found is None:
        print(f"No run has {wanted}: none of these locks holds.")
        return NONE_HOLDS
    print(
        f"Take {found.name}: it has {wanted}. It was chosen by the pictures that it is shown on here: measure it again with "
        "another split seed."
    )
    return 0
