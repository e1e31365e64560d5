"""What must stand beside the numbers of a leakage audit."""

from collections.abc import Mapping, Sequence

from lightning_privacy.callbacks.audits.leakage_conditions import Condition
from lightning_privacy.callbacks.audits.leakage_results import SUCCESS_SSIM, Scores

__all__ = ["condition_notes", "label_notes", "objective_notes", "weakness_notes"]

_VISIBLE_RETRIEVAL = 0.8  # as in the audit of single pictures


def condition_notes(condition: Condition, failed: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a condition is, and which attacks could not run under it.

    Args:
        condition: The condition.
        failed: Reasons by attack.
    """
    what = (f"`{condition.name}` is a control: {condition.about}.",) if condition.is_control else ()
    return (*what, *(f"The attack `{name}` did not run: {why}" for name, why in failed.items()))


def label_notes(absent: bool) -> tuple[str, ...]:
    """Return what must be said where no class can be read off an update.

    Args:
        absent: Whether that is so.
    """
    return ("No linear layer with one output a class was shared, so that no class can be read off.",) if absent else ()


def objective_notes(defences: Sequence[str]) -> tuple[str, ...]:
    """Return what must be said where defences change the loss, which the audited update leaves out.

    Args:
        defences: Their names.
    """
    return tuple(
        f"insufficient_evidence: `{name}` changes the training loss, and the audited update is that of the plain "
        "cross-entropy without what it adds."
        for name in defences
    )


def weakness_notes(
    conditions: Sequence[Condition], found: Mapping[str, Scores | None], floor: Scores | None
) -> list[str]:
    """Return whether the numbers prove anything: an undefended update must be reconstructed by the same attacks.

    Args:
        conditions: Of the audit.
        found: The strongest attack's scores by condition.
        floor: Those of the guess that needs no update.
    """
    notes = []
    undefended = next((c.name for c in conditions if c.is_open), None)
    scores = None if undefended is None else found[undefended]
    if undefended is None:
        notes.append(
            f"There is no undefended control beside `{conditions[0].name}`: compare with a run without defences before "
            "calling a poor reconstruction the defence's merit."
        )
    elif scores is not None:
        ssim = float(scores.values["aligned_ssim"].mean())
        share = float(scores.values["retrieval"].mean())
        if ssim < SUCCESS_SSIM and share < _VISIBLE_RETRIEVAL:
            notes.append(
                f"The undefended update (`{undefended}`) is not reconstructed (aligned SSIM {ssim:.2f}, {100 * share:.0f} % "
                f"retrieved; visible is {SUCCESS_SSIM} or {100 * _VISIBLE_RETRIEVAL:.0f} %): the attacks are too weak here, "
                "and the run proves nothing about a defence."
            )
    if floor is not None and (lucky := float(floor.values["success"].mean())) > 0:
        notes.append(
            f"Guessing the class's mean picture already counts as success for {100 * lucky:.0f} % of the victims: read "
            "`success` against that, and `retrieval` beside it."
        )
    return notes
