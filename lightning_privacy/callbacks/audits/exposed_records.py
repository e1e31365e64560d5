"""The training records that an audit recognises best, with their pictures, as a table in W&B: off unless asked for."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Shaped, UInt8
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.callbacks.audits.membership_audit import MOST_SCORES
from lightning_privacy.callbacks.audits.split_access import batch_records, role_indices
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.callbacks.quality.picture_sets import batch_captions
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, SplitError
from lightning_privacy.metrics.functional.binomial import clopper_pearson

__all__ = [
    "ExposedRecord",
    "check_exposed_records",
    "display_pictures",
    "log_exposed_records",
    "most_exposed",
    "short_id",
]

_MEMBERS, _NONMEMBERS = "eval_member", "holdout"
_RATES = [f"false_positive_rate{suffix}" for suffix in ("", "_low", "_high", "_by_chance")]
_ID_DIGITS = 12  # 48 bits: enough to find a record again among millions


@dataclass(frozen=True)
class ExposedRecord:
    """How surely an attack recognises one member.

    Args:
        position: Its place in the role ``eval_member``.
        score: The attack's score.
        false_positive_rate: Share of the non-members that score at least as high: the price, in false accusations, of
            a threshold at which this record is called a member.
        low: Lower end of that rate's exact 95 % interval.
        high: Upper end.
        by_chance: What the rate would be on average if the attack could tell nothing: even then some member scores
            highest, and k / (members + 1) of all non-members score higher than the k-th.
    """

    position: int
    score: float
    false_positive_rate: float
    low: float
    high: float
    by_chance: float


def most_exposed(
    member_scores: Sequence[float | int], nonmember_scores: Sequence[float | int], count: int
) -> list[ExposedRecord]:
    """Return the members of the highest scores, highest first; equal scores in the order of the role.

    Each interval holds for its record alone, because the threshold is a member's score and owes nothing to the
    non-members that are counted.

    Args:
        member_scores: One a member, higher = more member-like.
        nonmember_scores: One a non-member, at least one.
        count: How many to return; all where there are fewer.

    Example:
        >>> top = most_exposed([0.2, 0.9, 0.5], [0.1, 0.5, 0.3, 0.6], count=2)
        >>> [(record.position, record.false_positive_rate, round(record.high, 3), record.by_chance) for record in top]
        [(1, 0.0, 0.602, 0.25), (2, 0.5, 0.932, 0.5)]

    Source:
        The interval: Clopper and Pearson, Biometrika 26 (1934), 404-413.
    """
    order = sorted(range(len(member_scores)), key=lambda i: -member_scores[i])[:count]
    found: list[ExposedRecord] = []
    for number, position in enumerate(order, start=1):
        score = float(member_scores[position])
        as_high = sum(other >= score for other in nonmember_scores)
        low, high = clopper_pearson(as_high, len(nonmember_scores))
        rate, by_chance = as_high / len(nonmember_scores), number / (len(member_scores) + 1)
        found.append(ExposedRecord(position, score, rate, float(low), float(high), by_chance))
    return found


def short_id(record_id: str) -> str:
    """Return the first 12 hexadecimal digits of a record's identity; of its sha256 where it is no digest itself.

    Example:
        >>> short_id("0123456789abcdef" * 4), short_id("patient 7")
        ('0123456789ab', '380e1c6279a5')
    """
    if len(record_id) != 64 or not set(record_id) <= set("0123456789abcdef"):
        record_id = hashlib.sha256(record_id.encode()).hexdigest()
    return record_id[:_ID_DIGITS]


def display_pictures(pictures: Sequence[Shaped[Tensor, "_ _ _"]]) -> list[UInt8[Tensor, "_ _ 3"]]:
    """Return pictures as bytes, height by width by colour.

    One scale serves all of them: [0, 1] stays as it is, and where some picture leaves it (a dataset that normalises),
    the range of all pictures together and [0, 1] becomes black to white.

    Args:
        pictures: Channels (1 or 3), height, width; floating point, or bytes from 0 to 255.

    Example:
        >>> [int(p[0, 0, 0]) for p in display_pictures([torch.full((1, 2, 2), -1.0), torch.zeros(3, 2, 2)])]
        [0, 128]
    """
    plain = [(p.float() / 255 if p.dtype == torch.uint8 else p.detach().float()).cpu() for p in pictures]
    low = min([0.0, *(float(p.min()) for p in plain)])
    high = max([1.0, *(float(p.max()) for p in plain)])
    return [
        ((p.expand(3, -1, -1) - low) / (high - low) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        for p in plain
    ]


def check_exposed_records(trainer: L.Trainer, split: Any, count: int) -> None:
    """Check at the start of training that `log_exposed_records` will have what it needs, and say what it will upload.

    Args:
        trainer: The trainer; without a W&B logger nothing will be logged, and nothing is checked but the number.
        split: The set-up `MembershipSplit`.
        count: How many records; 0 for none.

    Raises:
        InputError: the number is negative, the batches have no pictures that can be shown, or there are more records
            than an audit keeps scores of.
    """
    if count < 0:
        raise InputError(f"The number of exposed records to show is {count}; give 0 for none, or a positive number.")
    if not count or not _wandb_loggers(trainer):
        return
    most = max(len(role_indices(split, role)) for role in (_MEMBERS, _NONMEMBERS))
    if most > MOST_SCORES:
        raise InputError(
            f"The most exposed records cannot be shown: an audit keeps the scores of at most {MOST_SCORES} records a "
            f"side, and there are {most}. Set `exposed: 0`, or evaluate on fewer records by the split's `fractions`."
        )
    batch = next(iter(split.loader(_MEMBERS, 1)))
    try:
        pictures = images_of(batch)
    except InputError as error:
        raise InputError(f"The most exposed records cannot be shown; set `exposed: 0`. {error}") from error
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise InputError(
            f"The most exposed records cannot be shown, because a batch of one record has the shape "
            f"{tuple(pictures.shape)} where pictures have (1, 1 or 3 channels, height, width); set `exposed: 0`."
        )
    rank_zero_info(
        f"The membership audit gives W&B the pictures of the {count} training records that the model exposes most; "
        "`exposed: 0` keeps them here."
    )


def log_exposed_records(
    trainer: L.Trainer,
    split: Any,
    results: Sequence[AttackResult],
    count: int,
    key: str = "attack/membership/exposed",
    batch_size: int | None = None,
) -> None:
    """Log the members that the strongest attack recognises best to every W&B logger; every rank must call.

    A row holds the rank, a shortened identity, the picture, label and caption where the data has them, the attack, the
    score, and the false-positive rate at which the record would be called a member, with its 95 % interval and what it
    would be if nothing leaked. Other loggers get nothing.

    This hands training pictures, of the very people whom the model protects least, to whoever can read the W&B
    project, as an artifact that may outlive the run there. Offline too, copies lie in ``wandb/artifacts`` of the run's
    folder (or where ``WANDB_DATA_DIR`` says), and ``wandb sync`` uploads them. Whoever offers this should therefore
    leave it off by default: it is meant for public data, or for projects that only people with a right to the data can
    read.

    Args:
        trainer: The trainer.
        split: The set-up `MembershipSplit` of the audit.
        results: What `audit_membership` returned: the attack that fit data chose as the strongest is shown.
        count: How many records; 0 for none. All of them where there are fewer.
        key: Name of the table.
        batch_size: Records read at once; the datamodule's own if None.

    Raises:
        InputError: the results name no strongest membership attack, or hold no scores of single records.
        SplitError: the results belong to another split.
    """
    loggers = _wandb_loggers(trainer)
    if not count or not loggers:
        return
    staging = RunFolder(trainer.default_root_dir).path / "wandb"
    on_rank_zero(lambda: _log(loggers, staging, split, results, count, key, batch_size))


def _log(
    loggers: Sequence[WandbLogger],
    staging: Path,
    split: Any,
    results: Sequence[AttackResult],
    count: int,
    key: str,
    batch_size: int | None,
) -> None:
    import wandb
    from PIL import Image

    result = _strongest(results, split)
    top = most_exposed(result.extra["member_scores"], result.extra["nonmember_scores"], count)
    ids = [split.record_ids[i] for i in role_indices(split, _MEMBERS)]
    read = _read(split, ids, {record.position for record in top}, batch_size)
    records = [read[record.position] for record in top]
    shown = [Image.fromarray(p.numpy()) for p in display_pictures([record["picture"] for record in records])]
    texts = [name for name in ("label", "caption") if any(name in record for record in records)]
    columns = ["rank", "record", "picture", *texts, "attack", "score", *_RATES]
    for logger in loggers:
        rows = [
            [
                number + 1,
                short_id(ids[each.position]),
                wandb.Image(shown[number]),  # a new one for each logger: it belongs to one W&B run
                *(records[number].get(name) for name in texts),
                result.attack,
                each.score,
                each.false_positive_rate,
                each.low,
                each.high,
                each.by_chance,
            ]
            for number, each in enumerate(top)
        ]
        with _staged_in(staging):
            logger.log_table(key=key, columns=columns, data=rows, step=result.step)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Let W&B keep the table's pictures in a folder of the run, unless the user has named one.

    By default they would lie in the home directory, for good: no run's folder shows that they are there, and a
    ``wandb sync`` under another home does not find them.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _strongest(results: Sequence[AttackResult], split: Any) -> AttackResult:
    found = [r for r in results if r.family == "membership" and r.strongest]
    if len(found) != 1 or not {"member_scores", "nonmember_scores"} <= set(found[0].extra):
        raise InputError(
            f"The most exposed records are those of one audit's strongest membership attack, but of {len(results)} "
            f"results {len(found)} are of such attacks, or the scores of single records were left out, as they are "
            f"above {MOST_SCORES} records a side. Pass the results of one `audit_membership` of fewer records."
        )
    if found[0].split_hash != split.split_hash:
        raise SplitError(
            f"The results belong to split {found[0].split_hash[:12]}, the data to split {split.split_hash[:12]}: the "
            "pictures would be those of other records. Pass the split that was audited."
        )
    return found[0]


def _read(split: Any, ids: Sequence[str], positions: set[int], batch_size: int | None) -> dict[int, dict[str, Any]]:
    """Return picture, and label and caption where there are any, by position in the role."""
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for batch in split.loader(_MEMBERS, batch_size):
        pictures = images_of(batch)
        end = start + len(pictures)
        batch_records(batch, tuple(ids[start:end]), _MEMBERS)
        labels, captions = _labels(batch), batch_captions(batch)
        for position in positions & set(range(start, end)):
            row = position - start
            found[position] = {"picture": pictures[row].clone()}  # not a view that keeps the batch
            if labels is not None:
                found[position]["label"] = int(labels[row])
            if captions:
                found[position]["caption"] = captions[row]
        start = end
        if len(found) == len(positions):
            break
    return found


def _labels(batch: Any) -> Tensor | None:
    """Return one class a record, or None where the batch holds none (or several a record, or numbers)."""
    second = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    found = batch.get("label") if isinstance(batch, Mapping) else second
    whole = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
    return found if whole else None


def _wandb_loggers(trainer: L.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
