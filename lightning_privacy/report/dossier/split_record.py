"""The split record of a run: who is a member, as counts and a hash, and whether the record can be true."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import DataCard

__all__ = ["data_card", "record_ids", "split_gaps"]

_TRAINED_ON = frozenset({"member", "aux_member", "eval_member", "private"})
"""Roles whose records the model saw; every other role holds records that it must not have seen."""


def data_card(run: RunFolder, split_hashes: Sequence[str], evaluated: Iterable[str] = ()) -> DataCard:
    """Return counts of the roles and the hash of the split; no id.

    Args:
        run: The run.
        split_hashes: Splits that the results are on.
        evaluated: Roles that the attacks were judged on.

    Raises:
        InputError: ``split.json`` cannot be read, a record is both member and non-member, an evaluated role is empty, or
            the results are on another split.
    """
    raw = _read(run)
    roles = _roles(raw, run)
    _check_disjoint(roles, run)
    empty = sorted(role for role in set(evaluated) & set(roles) if not roles[role])
    if empty:
        raise InputError(
            f"The split record {run.split} has no record of the role `{empty[0]}`, on which attacks were judged. Restore the "
            "record from the run, or audit again."
        )
    recorded = str(raw.get("split_hash") or "")
    if recorded and any(h != recorded for h in split_hashes):
        raise InputError(
            f"The results of {run.path} are on split {next(h for h in split_hashes if h != recorded)[:12]}, its split "
            f"record is {recorded[:12]}: they are about other records. Audit the run again."
        )
    seed = raw.get("split_seed", raw.get("seed"))
    return DataCard(
        split_sha256=recorded or next(iter(split_hashes), ""),
        roles={role: len(ids) for role, ids in roles.items()},
        split_seed=seed if isinstance(seed, int) else None,
        unit_of_privacy="record",
    )


def split_gaps(run: RunFolder, split_hashes: Sequence[str]) -> list[str]:
    """Return what keeps the results from being about one known split."""
    gaps = []
    if not run.split.is_file():
        gaps.append("There is no split record (split.json), so that nothing shows who was a member.")
    if len(set(split_hashes)) > 1:
        gaps.append("The results are on different splits, so that they are not about the same records; audit again.")
    return gaps


def record_ids(run: RunFolder) -> list[str]:
    """Return every id of the split record, to make sure that none leaves."""
    return sorted({str(i) for ids in _roles(_read(run), run).values() for i in ids})


def _read(run: RunFolder) -> Mapping[str, Any]:
    if not run.split.is_file():
        return {"roles": {}}
    try:
        raw = json.loads(run.split.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise _damaged(run, "it is no JSON") from wrong
    if not isinstance(raw, dict) or not isinstance(raw.get("roles"), dict):
        raise _damaged(run, "it has no `roles`")
    return raw


def _roles(raw: Mapping[str, Any], run: RunFolder) -> dict[str, list[Any]]:
    for role, ids in raw["roles"].items():
        if not isinstance(ids, list) or not all(isinstance(i, str | int) for i in ids):
            raise _damaged(run, f"the role `{role}` is no list of record ids")
    return {str(role): list(ids) for role, ids in raw["roles"].items()}


def _check_disjoint(roles: Mapping[str, Sequence[Any]], run: RunFolder) -> None:
    seen = {str(i) for role in _TRAINED_ON & set(roles) for i in roles[role]}
    for role in sorted(set(roles) - _TRAINED_ON):
        both = seen & {str(i) for i in roles[role]}
        if both:
            raise InputError(
                f"The split record {run.split} has {len(both)} of the records of `{role}` among the members too, so that no "
                "attack on this split tells anything. Restore the record from the run, or split and train again."
            )


def _damaged(run: RunFolder, why: str) -> InputError:
    return InputError(f"The split record {run.split} cannot be read: {why}. Restore it from the run.")
