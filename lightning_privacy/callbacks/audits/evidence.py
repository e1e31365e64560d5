"""Which attacks know a run's defences, and the sentences that must stand beside an attack's numbers."""

from collections.abc import Mapping, Sequence

import lightning.pytorch as L

from lightning_privacy.attacks.inversion.target import InversionAttack
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.results import AttackResult, MembershipAttack
from lightning_privacy.metrics.membership import null_auroc_sd

__all__ = ["adaptive_attacks", "defences_of", "inversion_attacks_of", "result_notes"]


def defences_of(trainer: L.Trainer) -> list[Defence]:
    """Return the trainer's defences."""
    return [c for c in trainer.callbacks if isinstance(c, Defence)]  # pyright: ignore[reportAttributeAccessIssue]


def adaptive_attacks(
    defences: Sequence[Defence], available: set[str]
) -> tuple[list[MembershipAttack], tuple[str, ...]]:
    """Return the membership attacks that know these defences, and what must be said where there are none.

    Args:
        defences: The defences of the run.
        available: Signals that the module can give.
    """
    attacks: list[MembershipAttack] = []
    notes: list[str] = []
    for defence in defences:
        built = [import_object(path)() for path in defence.adaptive_attacks]
        usable = [a for a in built if isinstance(a, MembershipAttack)]
        runnable = [a for a in usable if set(a.requires) <= available]
        attacks += runnable
        if not usable:
            notes.append(
                f"insufficient_evidence: there is no membership attack that knows the defence `{defence.name}`."
            )
        for attack in usable:
            lacking = sorted(set(attack.requires) - available)
            if lacking:
                notes.append(
                    f"insufficient_evidence: the attack `{attack.name}`, which knows the defence `{defence.name}`, did "
                    f"not run, because the module does not give {', '.join(lacking)}."
                )
    return attacks, tuple(notes)


def inversion_attacks_of(defences: Sequence[Defence]) -> tuple[list[InversionAttack], tuple[str, ...]]:
    """Return the inversion attacks that know these defences, and what must be said where there are none.

    Args:
        defences: The defences of the run.
    """
    attacks: dict[str, InversionAttack] = {}
    notes: list[str] = []
    for defence in defences:
        built = [import_object(path)() for path in defence.adaptive_attacks]
        usable = [a for a in built if isinstance(a, InversionAttack)]
        attacks |= {attack.name: attack for attack in usable}
        if not usable:
            notes.append(
                f"insufficient_evidence: there is no inversion attack that knows the defence `{defence.name}`."
            )
    return list(attacks.values()), tuple(notes)


def result_notes(
    counts: Mapping[str, int], attacks: int, strongest: AttackResult, defences: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the sentences common to all attacks of one audit.

    Args:
        counts: Evaluation records by role.
        attacks: How many attacks ran.
        strongest: The one that fit data chose.
        defences: Names of the run's defences; None where the audit does not know them.
    """
    members, nonmembers = counts.values()
    notes = [
        f"With {members} members against {nonmembers} non-members the AUROC of pure noise has a standard deviation of "
        f"{null_auroc_sd(members, nonmembers):.3f} around 0.5, and one split seed says nothing about other splits."
    ]
    if attacks > 1:
        notes.append(
            f"The strongest of {attacks} attacks was chosen on the attacker's own records; the largest number in the "
            "table, picked afterwards, is biased upwards."
        )
    low = strongest.metrics["auroc"].low
    leaks = low is not None and low > 0.5
    if not leaks and defences:
        notes.append("The strongest attack found no leak on these records; other attacks or more records might.")
    elif not leaks:
        notes.append(
            "The strongest attack found no leak: its interval includes 0.5. An undefended baseline that does not leak "
            "proves nothing about a defence compared with it."
        )
    return tuple(notes)
