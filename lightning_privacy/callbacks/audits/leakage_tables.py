"""From attempts on updates to results and sheets: here, and nowhere before, reconstructions meet the records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.references import class_mean_pictures, mean_pictures
from lightning_privacy.callbacks.audits.leakage_attacks import LABELS
from lightning_privacy.callbacks.audits.leakage_attempts import Attempt, Attempts, strongest_of
from lightning_privacy.callbacks.audits.leakage_conditions import Condition
from lightning_privacy.callbacks.audits.leakage_pictures import LeakagePictures
from lightning_privacy.callbacks.audits.leakage_results import (
    Made,
    Scores,
    leakage_result,
    ordered,
    score_pictures,
    shared_labels,
)
from lightning_privacy.callbacks.audits.leakage_sentences import condition_notes, label_notes, weakness_notes
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["STRONGEST", "Audited", "floors_of", "tables_of"]

STRONGEST = "strongest_per_victim"
"""Name of what an attacker would hand in: of each update, the attack that explains it best."""
_NO_MODEL = "nothing of the model; a reference and no attack"


@dataclass(frozen=True)
class Audited:
    """All updates of one batch size.

    Args:
        batch: Records an update.
        updates: By update, attempts by condition.
    """

    batch: int
    updates: Sequence[Mapping[str, Attempts]]


def tables_of(
    audited: Sequence[Audited],
    conditions: Sequence[Condition],
    access: Mapping[str, str],
    pictures: LeakagePictures,
    state: str,
    model: AuditedModel,
    split_hash: str,
    *,
    seed: int,
    bootstrap: int,
    shown: int,
    notes: Sequence[str] = (),
) -> tuple[list[AttackResult], dict[str, list[Float[Tensor, "n channels height width"]]]]:
    """Return the results of an audit, and its sheets by batch size.

    Args:
        audited: What was attempted.
        conditions: Under which conditions.
        access: Of each attack.
        pictures: The victims.
        state: ``initial`` or ``trained``.
        model: What the results say about the model.
        split_hash: Of the split.
        seed: Of the bootstrap.
        bootstrap: Resamples.
        shown: Pictures on a sheet.
        notes: Of the audit.

    Raises:
        InputError: no attack could run under some condition.
    """
    results: list[AttackResult] = []
    sheets: dict[str, list[Tensor]] = {}
    others = pictures.others.cpu()
    for group in audited:
        records = group.batch * len(group.updates)
        truth, labels = pictures.victims[:records].cpu(), pictures.labels[:records].cpu()
        floors = floors_of(pictures, records, group.batch)
        scored = {made.name: (made, _scores(made, truth, others)) for made in floors}
        floor = scored[f"batch{group.batch}/class_mean"][1]
        rows = [truth[:shown]]
        for row, condition in enumerate(conditions, start=1):
            prefix = f"{state}/batch{group.batch}/{condition.name}"
            every = _made(
                prefix, condition, row, [update[condition.name] for update in group.updates], access, truth, labels
            )
            scored |= {each.name: (each, _scores(each, truth, others)) for each in every}
            rows += [each.pictures[:shown] for each in every if "sheet_row" in each.extra and each.pictures is not None]
        sheets[f"{state}/batch{group.batch}"] = rows
        common = [
            *model.notes,
            *notes,
            *weakness_notes(
                conditions,
                {c.name: scored[f"{state}/batch{group.batch}/{c.name}/{STRONGEST}"][1] for c in conditions},
                floor,
            ),
        ]
        results += [
            leakage_result(
                made,
                scores,
                group.batch,
                floor=None if floor is None else floor.values["psnr"],
                seed=seed,
                bootstrap=bootstrap,
                split_hash=split_hash,
                step=model.step,
                epoch=model.epoch,
                candidates=records + len(others),
                notes=common if made.family != "leakage_reference" else model.notes,
            )
            for made, scores in scored.values()
        ]
    return results, sheets


def _scores(made: Made, truth: Tensor, others: Tensor) -> Scores | None:
    return None if made.pictures is None else score_pictures(made.pictures, truth, others)


def _made(
    prefix: str,
    condition: Condition,
    row: int,
    updates: Sequence[Attempts],
    access: Mapping[str, str],
    truth: Tensor,
    labels: Tensor,
) -> list[Made]:
    family = "leakage_control" if condition.is_control else "leakage"
    batch = len(truth) // len(updates)
    names = [name for name in updates[0].by if all(name in update.by for update in updates)]
    failed = {name: why for update in updates for name, why in update.failed.items()}
    about = condition_notes(condition, failed)
    if not names:
        raise InputError(
            f"LeakageAudit: no attack could run on the {condition.about} (`{condition.name}`): "
            f"{'; '.join(failed.values()) or 'none of those named applies to it'}. Name others in `attacks`."
        )

    def put(name: str, chosen: Sequence[Attempt], how: str, **more: Any) -> Made:
        parts = [ordered(each.pictures, truth[i * batch : (i + 1) * batch]) for i, each in enumerate(chosen)]
        right = [shared_labels(each.labels, labels[i * batch : (i + 1) * batch]) for i, each in enumerate(chosen)]
        own = tuple(dict.fromkeys(each.note for each in chosen if each.note))
        return Made(
            family,
            f"{prefix}/{name}",
            how,
            torch.cat(parts),
            torch.tensor(right, dtype=torch.float64),
            tuple(each.matching_loss for each in chosen),
            tuple(each.converged for each in chosen),
            notes=(*about, *own),
            **more,
        )

    found = []
    for name in names:
        each = [update.by[name] for update in updates]
        distances = [attempt.distance for attempt in each]
        found.append(put(name, each, access[name], extra={"distance": distances}))
    picks = [strongest_of({name: update.by[name] for name in update.candidates if name in names}) for update in updates]
    best = [update.by[pick] for update, pick in zip(updates, picks, strict=True)]
    kinds = ", ".join(dict.fromkeys(access[pick] for pick in picks))
    distances = [attempt.distance for attempt in best]
    chosen = {"chosen": dict(Counter(picks)), "distance": distances, "sheet_row": row}  # row 0 shows the victims
    found.append(put(STRONGEST, best, kinds, strongest=not condition.is_control, extra=chosen))
    found.append(_labels(prefix, family, updates, labels, batch))
    return found


def _labels(prefix: str, family: Any, updates: Sequence[Attempts], labels: Tensor, batch: int) -> Made:
    none = torch.full((batch,), -1)
    right = torch.tensor(
        [
            shared_labels(none if update.labels is None else update.labels, labels[i * batch : (i + 1) * batch])
            for i, update in enumerate(updates)
        ],
        dtype=torch.float64,
    )
    notes = label_notes(all(update.labels is None for update in updates))
    return Made(family, f"{prefix}/{LABELS}", "the update of the last layer", None, right, notes=notes)


def floors_of(pictures: LeakagePictures, records: int, batch: int) -> list[Made]:
    """Return what is right without any update: the attacker's mean picture, that of the class, and the nearest of its own.

    Args:
        pictures: The victims, and the attacker's own.
        records: How many victims.
        batch: Records an update.
    """
    truth, labels = pictures.victims[:records].cpu(), pictures.labels[:records].cpu()
    own, own_labels = pictures.own.cpu(), pictures.own_labels.cpu()
    nearest = torch.cdist(truth.flatten(1).double(), own.flatten(1).double()).argmin(1)
    guesses = {
        "mean_picture": mean_pictures(own, records),
        "class_mean": class_mean_pictures(own, own_labels, labels),
        "nearest_own": own[nearest],
    }
    notes = {
        "class_mean": ("Whoever guesses it knows the victim's class.",),
        "nearest_own": ("Whoever guesses it knows which of its own pictures is nearest to the victim.",),
    }
    return [
        Made("leakage_reference", f"batch{batch}/{name}", _NO_MODEL, guess.clone(), notes=notes.get(name, ()))
        for name, guess in guesses.items()
    ]
