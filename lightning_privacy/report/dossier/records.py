"""How exposed each record is: a table that leaves as a sidecar under salted ids, and a summary that leaves as counts."""

import hashlib
import hmac
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_privacy.core.npz_file import read_npz
from lightning_privacy.core.results import AttackResult
from lightning_privacy.report.dossier.models import RecordSummary, ScoreSummary

__all__ = ["RecordTable", "load_records", "record_table", "save_records"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # chosen here: never the extremes, each of which is one record's score
_ID_DIGITS = 32  # 128 bits: no two records of any dataset share an id


@dataclass(frozen=True)
class RecordTable:
    """Scores of every evaluated record under every attack.

    Args:
        names: What identifies each record; never written.
        member: Whether it was trained on.
        scores: By attack, in the order of ``names``, higher = more member-like.
        thresholds: Of the attacks that have one.
        id_source: What ``names`` are, in words.
    """

    names: tuple[str, ...]
    member: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]
    thresholds: Mapping[str, float]
    id_source: str

    def flags(self) -> NDArray[np.int64]:
        """Return how many attacks flag each record at their own threshold."""
        flagged = [self.scores[name] >= threshold for name, threshold in self.thresholds.items()]
        counts = np.zeros(len(self.names), dtype=np.int64)
        for each in flagged:
            counts += each
        return counts

    def rank(self) -> NDArray[np.int64]:
        """Return each record's place, 1 = most exposed, by its mean place over the attacks."""
        places = [_places(s) for s in self.scores.values()]
        return _places(-np.mean(places, axis=0)).astype(np.int64)

    def summary(self) -> RecordSummary:
        """Return quantiles, counts and shares."""
        flags, most = self.flags(), len(self.thresholds)
        return RecordSummary(
            n_member=int(self.member.sum()),
            n_nonmember=int((~self.member).sum()),
            id_source=self.id_source,
            attacks={name: self._of_attack(name) for name in self.scores},
            flagging_attacks=list(self.thresholds),
            member_flag_counts=np.bincount(flags[self.member], minlength=most + 1).tolist(),
            nonmember_flag_counts=np.bincount(flags[~self.member], minlength=most + 1).tolist(),
        )

    def _of_attack(self, name: str) -> ScoreSummary:
        sides = self.scores[name][self.member], self.scores[name][~self.member]
        threshold = self.thresholds.get(name)
        shares = [None if threshold is None else float((s >= threshold).mean()) for s in sides]
        return ScoreSummary(
            threshold=threshold,
            quantiles=list(_QUANTILES),
            member=np.quantile(sides[0], _QUANTILES).tolist(),
            nonmember=np.quantile(sides[1], _QUANTILES).tolist(),
            member_share_above=shares[0],
            nonmember_share_above=shares[1],
        )


def record_table(results: Sequence[AttackResult]) -> tuple[RecordTable | None, list[str]]:
    """Join the scores of a run's membership attacks.

    Args:
        results: Results on one model. Their ``extra`` holds ``member_scores`` and ``nonmember_scores``, one a record in
            the order of the role, and optionally ``member_ids`` and ``nonmember_ids``.

    Returns:
        The table, or None where no attack kept its scores; and what had to be left out, in words.
    """
    scored = [r for r in results if r.family == "membership" and all(_scores(r))]
    left_out = [
        f"The attack `{r.attack}` kept no scores of the records, so that it is not in the per-record table."
        for r in results
        if r.family == "membership" and not all(_scores(r))
    ]
    if not scored:
        return None, left_out
    sizes = tuple(map(len, _scores(scored[0])))
    names, source = _names(scored[0], sizes)
    kept: dict[str, NDArray[np.float64]] = {}
    thresholds: dict[str, float] = {}
    for result in scored:
        scores = np.asarray([*_scores(result)[0], *_scores(result)[1]], dtype=np.float64)
        same = tuple(map(len, _scores(result))) == sizes and _names(result, sizes)[0] == names
        if not same or not np.isfinite(scores).all():
            why = "is not finite everywhere" if same else "is about other records than the first attack's"
            left_out.append(f"The score of `{result.attack}` {why}, so that it is not in the per-record table.")
            continue
        kept[result.attack] = scores
        threshold = result.extra.get("threshold")
        if isinstance(threshold, float | int) and np.isfinite(threshold):
            thresholds[result.attack] = float(threshold)
    if not kept:
        return None, left_out
    member = np.arange(sum(sizes)) < sizes[0]
    return RecordTable(names, member, kept, thresholds, source), left_out


def save_records(path: Path, table: RecordTable, salt: bytes) -> str:
    """Write the sidecar and return its sha256.

    Arrays: ``record_id`` (salted), ``member``, ``scores`` (records x attacks), ``attacks``, ``thresholds`` (NaN where an
    attack has none), ``rank`` (1 = most exposed), ``n_flagged``. Rows are in the order of the salted ids, which is that of
    nothing else.

    Args:
        path: The file.
        table: The records.
        salt: The secret under which their names are hashed.
    """
    ids = np.array([_salted(name, salt) for name in table.names])
    order = np.argsort(ids)
    attacks = list(table.scores)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                record_id=ids[order],
                member=table.member[order],
                scores=np.stack([table.scores[a] for a in attacks], axis=1)[order],
                attacks=np.array(attacks),
                thresholds=np.array([table.thresholds.get(a, np.nan) for a in attacks]),
                rank=table.rank()[order],
                n_flagged=table.flags()[order],
            )
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def load_records(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read a sidecar; nothing in it is ever unpickled.

    Raises:
        InputError: it cannot be read.
    """
    return read_npz(path, "table of records")


def _salted(name: str, salt: bytes) -> str:
    return hmac.new(salt, name.encode(), hashlib.sha256).hexdigest()[:_ID_DIGITS]


def _scores(result: AttackResult) -> tuple[list[float], list[float]]:
    return list(result.extra.get("member_scores") or ()), list(result.extra.get("nonmember_scores") or ())


def _names(result: AttackResult, sizes: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    given = [result.extra.get(f"{side}_ids") for side in ("member", "nonmember")]
    if all(given) and tuple(map(len, given)) == sizes:  # pyright: ignore[reportArgumentType]
        return tuple(str(i) for ids in given for i in ids or ()), "record id"
    places = [f"{side}:{i}" for side, n in zip(("member", "nonmember"), sizes, strict=True) for i in range(n)]
    return tuple(places), "place in the evaluated role (member:0, member:1, ..., nonmember:0, ...)"


def _places(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places from the highest score, 1 first; equal scores share their first place."""
    ordered = np.sort(-scores)
    return np.searchsorted(ordered, -scores).astype(np.float64) + 1
