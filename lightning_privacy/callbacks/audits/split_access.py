"""Finding the membership split of a run and reading its roles."""

from collections.abc import Iterable
from typing import Any, Protocol

import lightning.pytorch as L

from lightning_privacy.errors import SplitError

__all__ = ["SplitLike", "batch_records", "check_roles", "find_split", "role_indices"]


class SplitLike(Protocol):
    """What audits read of a `MembershipSplit`."""

    roles: dict[str, list[int]]
    record_ids: list[str]
    split_hash: str

    def loader(self, role: str, batch_size: int | None = None) -> Iterable[Any]:
        """Return the records of a role once, in fixed order."""
        ...


def find_split(trainer: L.Trainer, party: str) -> Any:
    """Return the trainer's membership split.

    Args:
        trainer: The trainer.
        party: Who asks, for the error.

    Raises:
        SplitError: the trainer's datamodule is none.
    """
    found = getattr(trainer, "datamodule", None)
    if not all(hasattr(found, name) for name in ("roles", "record_ids", "split_hash", "loader")):
        what = "no datamodule" if found is None else f"the datamodule {type(found).__name__}"
        raise SplitError(
            f"{party} must know who is a member, but the trainer has {what}. Wrap your data: "
            "trainer.fit(module, datamodule=MembershipSplit(YourDataModule()))."
        )
    return found


def role_indices(split: Any, role: str) -> list[int]:
    """Return the dataset indices of a role in the order of its loader; ``eval_member`` is member minus aux_member.

    Raises:
        SplitError: there is no such role.
    """
    if hasattr(split, "indices"):
        return list(split.indices(role))
    if role == "eval_member" and "eval_member" not in split.roles:
        aux = set(split.roles["aux_member"])
        return [i for i in split.roles["member"] if i not in aux]
    if role not in split.roles:
        raise SplitError(f"There is no role `{role}`; the split has {', '.join(split.roles)}.")
    return list(split.roles[role])


def check_roles(split: Any, roles: Iterable[str], party: str) -> None:
    """Check that roles exist and hold records.

    Raises:
        SplitError: one of them is empty.
    """
    empty = [role for role in roles if not role_indices(split, role)]
    if empty:
        raise SplitError(
            f"{party} needs records in the role(s) {', '.join(empty)}, which are empty; raise their share in "
            "MembershipSplit(fractions=...)."
        )


def batch_records(batch: Any, ids: tuple[str, ...], role: str) -> None:
    """Check that a batch holds the records it should, where it says which it holds.

    Raises:
        SplitError: it holds others, so members and non-members would be confused.
    """
    record = batch.get("record") if isinstance(batch, dict) else None
    if record is None or not all(_is_hexadecimal(i) for i in ids):
        return
    if record.tolist() != [int(i[:16], 16) >> 1 for i in ids]:
        raise SplitError(
            f"The loader of the role `{role}` yields other records than the split's indices say; its order must be "
            "that of the role, without shuffling or dropping."
        )


def _is_hexadecimal(text: str) -> bool:
    return len(text) >= 16 and all(c in "0123456789abcdef" for c in text[:16])
