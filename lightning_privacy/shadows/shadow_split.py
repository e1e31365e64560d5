"""The data of one shadow model: the target's datamodule with other members."""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import lightning.pytorch as L

from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.datamodules.identity import read_identities
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.roles import check_roles, choose_aux
from lightning_privacy.datamodules.split_record import hash_record, make_record
from lightning_privacy.datamodules.strata import read_strata
from lightning_privacy.errors import InputError, SplitError
from lightning_privacy.shadows.halves import in_half

__all__ = ["Records", "ShadowSplit", "shadow_roles"]


@dataclass(frozen=True)
class Records:
    """The records of a target's split as the shadows see them.

    Args:
        split: The target's split, set up.
        contents: Content of every record of the dataset; equal content has one role.
        strata: Stratum of every record.
        indices: Dataset indices of the pool that the shadows' halves are drawn from, ascending.
    """

    split: MembershipSplit
    contents: list[str]
    strata: list[Hashable]
    indices: list[int]

    @classmethod
    def of(cls, split: MembershipSplit, roles: Sequence[str]) -> "Records":
        """Read the contents of a split's records.

        Args:
            split: A set-up split.
            roles: Roles whose union is the shadows' pool.

        Raises:
            InputError: the pool is too small, or holds records that the shadows need as non-members.
            SplitError: the split is not set up, or its data changed.
        """
        dataset = split.pool.dataset
        if kept := sorted({"val", "aux_nonmember"} & set(roles)):
            raise InputError(
                f"The shadow models' pool cannot hold the role(s) {', '.join(kept)}: shadows choose and defend with "
                "these records as the target does, so none of them may be a member. Leave them out of `roles`."
            )
        ids, contents, _ = read_identities(dataset, split.record_id)
        if ids != split.record_ids:
            raise SplitError("The records changed since the split was set up; make a new MembershipSplit for new data.")
        indices = sorted({index for role in roles for index in split.indices(role)})
        if len({contents[index] for index in indices}) < 4:
            raise InputError(
                f"The roles {', '.join(roles)} hold {len(indices)} records; shadow models need at least 4 distinct "
                "ones. Raise the shares in MembershipSplit(fractions=...)."
            )
        return cls(split, contents, read_strata(dataset, split.stratify)[0], indices)

    def inside(self, seed: int, shadow: int) -> dict[int, bool]:
        """Return for each record of the pool whether a shadow model is trained on it."""
        return dict(zip(self.indices, in_half([self.contents[i] for i in self.indices], seed, shadow), strict=True))


def shadow_roles(records: Records, seed: int, shadow: int) -> dict[str, list[int]]:
    """Return the dataset indices by role for one shadow model.

    Its members are its half of the pool; ``val`` and ``aux_nonmember`` are the target's, ``aux_member`` has the
    target's share, and the other half is divided into ``attack_nonmember`` and ``holdout`` as the target's are.

    Args:
        records: The target's records.
        seed: Of the pool of shadows.
        shadow: Its number.

    Raises:
        SplitError: a record would have two roles, or a role that the target has would be empty.
    """
    target, inside = records.split.roles, records.inside(seed, shadow)
    members = [index for index, is_in in inside.items() if is_in]
    outside = [index for index, is_in in inside.items() if not is_in]
    share = len(target["aux_member"]) / len(target["member"])
    attack, kept = len(target["attack_nonmember"]), len(target["holdout"])
    names = sorted(
        {records.contents[index] for index in outside}, key=lambda name: sha256(f"{seed}:{name}".encode()).hexdigest()
    )
    attacked = set(names[: round(len(names) * attack / max(1, attack + kept))])
    roles = {
        "member": members,
        "aux_member": choose_aux(members, records.contents, records.strata, share, derive_seed(seed, shadow)),
        "aux_nonmember": target["aux_nonmember"],
        "attack_nonmember": [index for index in outside if records.contents[index] in attacked],
        "val": target["val"],
        "holdout": [index for index in outside if records.contents[index] not in attacked],
    }
    wanted: dict[str, float | int] = {role: 1 for role in ("member", "val", "aux_nonmember") if target[role]}
    check_roles(roles, records.contents, {**wanted, "aux_member": share})
    return roles


class ShadowSplit(MembershipSplit):
    """A target's split with other roles: the same open dataset and loader settings, read without setting up again.

    It takes part in no collective, so that ranks can train different shadows at the same time.

    Args:
        split: The target's split, set up.
        roles: Dataset indices by role.
        contents: Content of every record.
        order_seed: Seed of the training order.
        batch_size: Records a batch; None for the target's.
    """

    # Lightning holds a barrier of all ranks around `prepare_data` where it is overridden; the target's data are open.
    prepare_data = L.LightningDataModule.prepare_data

    def __init__(
        self,
        split: MembershipSplit,
        roles: Mapping[str, Sequence[int]],
        contents: Sequence[str],
        order_seed: int,
        batch_size: int | None = None,
    ) -> None:
        # A copy, because a datamodule knows its trainer, and the target's must stay the target's.
        super().__init__(copy.copy(split.inner), stratify=split.stratify, order_seed=order_seed)
        self.roles = {role: list(indices) for role, indices in roles.items()}
        self.record_ids, self.record_id = split.record_ids, split.record_id
        self.split_record = make_record(self.roles, self.record_ids, contents, shadow_of=split.split_hash)
        self.split_hash = hash_record(self.split_record)
        self._identity, self._distinct = split._identity, split._distinct
        self._pool = replace(split.pool, batch_size=batch_size or split.pool.batch_size)

    def setup(self, stage: str) -> None:
        """Tell the inner datamodule its trainer; the roles are fixed."""
        self.inner.trainer = self.trainer

    def teardown(self, stage: str) -> None:
        """Do nothing: the target still reads its data."""

    def on_exception(self, exception: BaseException) -> None:
        """Do nothing: the target still reads its data."""

    def read(self, indices: Sequence[int]) -> Any:
        """Return records, checked as they are read, as a dataset that is indexed by position."""
        subset = self.subset("member")
        return type(subset)(subset.dataset, indices, subset.check)
