"""The verb lock-suggest: which of several locked models keeps its accuracy and keeps others out."""

import argparse
from dataclasses import dataclass

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError

__all__ = ["Candidate", "Measured", "holds", "read_candidate", "run", "suggest"]

NONE_HOLDS = 20
_UNLOCKED = "No lock was trained"
_CHOICE = "choice_accuracy"


@dataclass(frozen=True)
class Measured:
    """Accuracies of one model on one set of pictures, from 0 to 1.

    Args:
        up: With the key.
        lp: Of raw pictures.
        best: Of the attack that the attacker's own pictures chose.
    """

    up: float
    lp: float
    best: float


@dataclass(frozen=True)
class Candidate:
    """What a run's lock audit found.

    Args:
        name: Of the run's folder.
        locked: Whether a lock was trained.
        attack: The attack that the attacker's own pictures chose.
        choice: On pictures for choices (the role ``val``), by which locks are compared.
        reported: On held-out pictures, which choose nothing.
    """

    name: str
    locked: bool
    attack: str
    choice: Measured
    reported: Measured


def read_candidate(path: str) -> Candidate:
    """Read the last lock audit of a run.

    Args:
        path: The run's folder.

    Raises:
        InputError: it has none, or one that measured nothing for choices.
    """
    folder = RunFolder.open(path)
    every: dict[str, AttackResult] = {
        r.attack: r for r in folder.results() if r.family in ("lock", "lock_reference")
    }  # later audits stand further down
    needed = "with_key", "no_key", "strongest"
    if lacking := [name for name in needed if name not in every]:
        raise InputError(
            f"{path} has no result of a lock audit ({', '.join(lacking)}). Add `audits: {{lock: {{}}}}` to its recipe, or run "
            f"`lightning-privacy audit {path}` with it."
        )
    if any(_CHOICE not in every[name].extra for name in needed):
        raise InputError(
            f"The lock audit of {path} is of an older version, which measured held-out pictures alone: they must not choose. "
            f"Run `lightning-privacy audit {path}` again."
        )
    best = every["strongest"]
    return Candidate(
        folder.path.name,
        not any(_UNLOCKED in note for note in best.notes),
        str(best.extra["chosen_attack"]),
        Measured(*(float(every[name].extra[_CHOICE]) for name in needed)),
        Measured(*(every[name].metrics["accuracy"].value for name in needed)),
    )


def holds(found: Measured, baseline: float, within: float, at_most: float) -> bool:
    """Return whether a lock keeps UP near the baseline and every attacker below a share of UP.

    Args:
        found: Of the locked model.
        baseline: Accuracy without a lock, from 0 to 1, on the same pictures.
        within: How far below it UP may lie.
        at_most: Share of UP that an attacker may reach.

    Example:
        >>> holds(Measured(0.9, 0.1, 0.4), 0.92, 0.03, 0.5), holds(Measured(0.9, 0.1, 0.5), 0.92, 0.03, 0.5)
        (True, False)
    """
    return found.up > 0 and found.up >= baseline - within and found.best <= at_most * found.up


def suggest(candidates: list[Candidate], baseline: float, within: float, at_most: float) -> Candidate | None:
    """Return the locked run in which an attacker reaches the smallest share of UP, among those whose lock holds.

    Only pictures for choices are looked at.

    Args:
        candidates: Of the same data.
        baseline: Accuracy without a lock on pictures for choices, from 0 to 1.
        within: How far below it UP may lie.
        at_most: Share of UP that an attacker may reach.

    Returns:
        None where no lock holds.

    Example:
        >>> good, weak = Measured(0.9, 0.1, 0.2), Measured(0.9, 0.1, 0.8)
        >>> runs = [Candidate("a", True, "fine_tune", good, weak), Candidate("b", True, "no_key", weak, good)]
        >>> suggest(runs, 0.92, 0.03, 0.5).name
        'a'
    """
    meeting = [c for c in candidates if c.locked and holds(c.choice, baseline, within, at_most)]
    return min(meeting, key=lambda c: c.choice.best / c.choice.up, default=None)


def run(verb: str, args: list[str]) -> int:
    """Print what each run's lock is worth, and the one to take; 20 where none holds."""
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Which of several runs with a lock audit has a lock worth its cost? The role `val` chooses, `holdout` "
        "is reported.",
    )
    parser.add_argument("runs", nargs="+", help="folders of runs; one of them without a lock, or give --baseline")
    parser.add_argument(
        "--baseline", type=float, help="accuracy without a lock, 0 to 1; else that of the run without one"
    )
    parser.add_argument("--within", type=float, default=0.03, help="how far UP may lie below the baseline")
    parser.add_argument("--at-most", type=float, default=0.5, help="share of UP that an attacker may reach")
    chosen = parser.parse_args(args)
    candidates = [read_candidate(path) for path in chosen.runs]
    base = _baselines(candidates, chosen.baseline)
    _table(candidates)
    found = suggest(candidates, base.choice.lp, chosen.within, chosen.at_most)
    wanted = f"UP within {100 * chosen.within:g} points of the baseline and no attack above {chosen.at_most:g} of UP"
    if found is None:
        print(f"On pictures for choices no run has {wanted}: none of these locks holds.")
        return NONE_HOLDS
    there = holds(found.reported, base.reported.lp, chosen.within, chosen.at_most)
    print(
        f"Take {found.name}: on pictures for choices it has {wanted}, and the strongest attack reaches the smallest share. "
        f"On held-out pictures, which chose nothing, it has UP {100 * found.reported.up:.1f}% (baseline "
        f"{100 * base.reported.lp:.1f}%) and the strongest attack {100 * found.reported.best:.1f}%: "
        + ("it holds there too." if there else "there it does not hold, so that none of these locks does.")
    )
    return 0 if there else NONE_HOLDS


def _baselines(candidates: list[Candidate], given: float | None) -> Candidate:
    """Return the best model without a lock by pictures for choices, or one with a given accuracy."""
    if given is not None:
        same = Measured(given, given, given)
        return Candidate("baseline", False, "no_key", same, same)
    without = [c for c in candidates if not c.locked]
    if not without:
        raise InputError(
            "lock-suggest compares with a model without a lock: name a run with `--defences.model_lock null "
            "--data.inner.locked false` too, or give --baseline."
        )
    return max(without, key=lambda c: c.choice.lp)


def _table(candidates: list[Candidate]) -> None:
    width = max(len("run"), *(len(c.name) for c in candidates))
    cells = f"{'UP':>6} {'LP':>6} {'attack':>6}"
    print(f"{'':{width}}  {'for choices':20}  {'held out':20}")
    print(f"{'run':{width}}  {cells}  {cells}  strongest attack without the key")
    for c in candidates:
        both = (" ".join(f"{100 * v:5.1f}%" for v in (m.up, m.lp, m.best)) for m in (c.choice, c.reported))
        print(f"{c.name:{width}}  {'  '.join(both)}  {c.attack}")
