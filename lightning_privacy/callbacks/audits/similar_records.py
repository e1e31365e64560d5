"""Looking for near-duplicates between the members of a split and the records that stand for non-members."""

from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.structural.near_duplicates import near_duplicates, thumbnails
from lightning_privacy.attacks.structural.proportions import share
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.callbacks.audits.untouched import on_rank_zero, untouched
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.errors import InputError

__all__ = ["MOST_RECORDS", "SIMILARITIES", "audit_similar_records"]

SIMILARITIES = ("thumbnail", "embedding")
MOST_RECORDS = 50_000  # chosen here: 2.5e9 pairs a role, about a minute
_Views = tuple[Float[Tensor, "records features"], Float[Tensor, "records features"] | None]
"""Features of a role, and those of its mirrored pictures."""
_NONMEMBERS = ("holdout", "attack_nonmember", "aux_nonmember", "val")


def audit_similar_records(
    module: L.LightningModule,
    split: Any,
    similarity: str,
    threshold: float,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    model: AuditedModel | None = None,
) -> AttackResult:
    """Count non-members that have a near-duplicate among the members; every rank must call.

    Such a record is nearly a member, so that calling it a non-member makes every membership attack look worse than it
    is. `MembershipSplit` gives *equal* pictures one role; this finds those that are re-encoded, brightened or mirrored.

    Args:
        module: Gives the device, and the embedding where that is asked for.
        split: The set-up `MembershipSplit`.
        similarity: ``thumbnail`` or ``embedding``.
        threshold: Cosine from which two records are near-duplicates.
        seed: Of the choice of records where a role has more than `MOST_RECORDS`.
        batch_size: Records read at once.
        model: What the result says about the model.

    Returns:
        Shares of each non-member role with a near-duplicate member, the control between two non-member roles, and in
        ``extra`` counts and the record ids of the most similar pairs.
    """
    roles = ["member", *(role for role in _NONMEMBERS if role_indices(split, role))]
    features: dict[str, _Views] | None = None
    if similarity == "embedding":
        found = compute_signals(module, split, roles, {"embedding"}, batch_size=batch_size)
        features = {role: (signals.embedding, None) for role, signals in found.items() if signals.embedding is not None}

    def compare() -> AttackResult:
        metrics: dict[str, Metric] = {}
        pairs: dict[str, Any] = {}
        notes: list[str] = []
        counts = {role: len(role_indices(split, role)) for role in roles}
        try:
            rows = features or {role: _pictures(module, split, role, batch_size) for role in roles}
        except InputError as error:
            # No pictures: said in the result, because the other structural checks do not need them.
            rows, metrics = {}, {"holdout_near_members": Metric(0.0, valid=False, reason=str(error))}
        kept = {role: _some(len(x), seed, role) for role, (x, _) in rows.items()}
        compared = [(role, "member") for role in roles[1:] if rows]
        if {"holdout", "attack_nonmember"} <= set(rows):
            compared.append(("holdout", "attack_nonmember"))
        for role, other in compared:
            one, two = kept[role], kept[other]
            plain, mirrored = rows[other]
            hit = near_duplicates(
                plain[two],
                rows[role][0][one],
                threshold,
                mirrored=None if mirrored is None else mirrored[two],
            )
            metrics[f"{role}_near_{other}{'s' if other == 'member' else ''}"] = share(hit.right, len(one))
            ids = [[_id(split, other, int(two[a])), _id(split, role, int(one[b])), cosine] for a, b, cosine in hit.top]
            pairs[f"{other}:{role}"] = {"pairs": hit.pairs, "compared": hit.compared, "top": ids}
        cut = [role for role, (x, _) in rows.items() if len(x) > MOST_RECORDS]
        if cut:
            notes.append(f"Only {MOST_RECORDS} records of {', '.join(cut)} were compared, drawn by the seed.")
        near = metrics.get("holdout_near_members")
        if near is not None and near.valid and near.value:
            notes.append(
                f"{near.value:.1%} of `holdout` nearly equal a member: membership attacks look weaker than they are. "
                "Give such pairs one role (the same `record_id`) or leave them out."
            )
        about = model or AuditedModel()
        return AttackResult(
            family="structural",
            attack="near_duplicates",
            access="the records",
            seed=seed,
            split_hash=split.split_hash,
            n=counts,
            metrics=metrics,
            step=about.step,
            epoch=about.epoch,
            notes=(*notes, *about.notes),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            extra={"similarity": similarity, "threshold": threshold, "roles": pairs, **(about.extra or {})},
        )

    return on_rank_zero(compare)


def _pictures(module: L.LightningModule, split: Any, role: str, batch_size: int | None) -> _Views:
    # The same stillness as for signals: a loader may draw from the global random state.
    with untouched(module):
        plain, mirrored = [], []
        for batch in split.loader(role, batch_size):
            images = images_of(batch)
            if images.ndim != 4:
                raise InputError(
                    f"Near-duplicates are looked for among pictures (batch, channels, height, width), but a batch has "
                    f"shape {tuple(images.shape)}; use `similarity: embedding`, or null."
                )
            plain.append(thumbnails(images))
            mirrored.append(thumbnails(images.flip(-1)))
    return torch.cat(plain), torch.cat(mirrored)


def _some(n: int, seed: int, role: str) -> Tensor:
    if n <= MOST_RECORDS:
        return torch.arange(n)
    return torch.randperm(n, generator=seeded_generator("near duplicates", seed, role))[:MOST_RECORDS]


def _id(split: Any, role: str, place: int) -> str:
    return split.record_ids[role_indices(split, role)[place]]
