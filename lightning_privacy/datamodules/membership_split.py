"""A datamodule around any other that decides, and records, which records are trained on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_privacy.datamodules.division import agree, divide
from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.identity import (
    DATASETS_OWN,
    ITEM_DIGEST,
    item_digest,
    record_number,
)
from lightning_privacy.datamodules.pool import Pool, open_pool
from lightning_privacy.datamodules.resumable_loader import FixedLoader, rank_and_world, resumable_loader
from lightning_privacy.datamodules.role_stream import RoleStream, RoleSubset
from lightning_privacy.datamodules.roles import resolve_fractions
from lightning_privacy.datamodules.split_record import write_record_file
from lightning_privacy.errors import SplitError

__all__ = ["MembershipSplit"]

# One read in so many is compared with the record's identity, in turn over the epochs: hashing costs.
CHECK_EVERY = 8
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class MembershipSplit(L.LightningDataModule):
    """Trains on the members of another datamodule's training set; the rest is for defences, attacks and validation.

    The training batches are exactly the inner datamodule's (its collate function, batch size and workers), drawn from
    the members alone. Every other role is pulled by who needs it, as a `stream` or a `loader`. Roles depend on the seed
    and the records, never on their order; records with the same picture share a role; the split's hash stands in every
    checkpoint, and resuming with another split is an error. Training resumes exactly in the middle of an epoch.

    Where the inner dataset augments at random by the global random state, resuming is exact in the order of the records
    and not in their augmentation.

    Args:
        inner: Datamodule whose ``train_dataloader().dataset`` is the pool. Its validation and test data are not used.
        split_seed: Seed of the roles.
        fractions: Share of the pool of ``member`` (default 0.3), ``aux_nonmember`` (0.2), ``attack_nonmember`` (0.2),
            ``val`` (0.1) and ``holdout`` (0.2); under ``aux_member`` the share of the *members* (0.5). A number above 1
            is a number of records. Roles left out keep their defaults; what no role takes is not used.
        stratify: Key (or place in a tuple) of the item by whose value every role gets its share; ``auto`` takes
            ``label``, else ``caption``, else the integer that ends a tuple, else nothing; null for none.
        roles: Records by role (dataset indices or record ids) instead of drawing them, or the path of a ``split.json``.
        record_id: Function (dataset, index) -> str, or its import path, that identifies a raw record; null takes the
            dataset's own ``record_id(index)`` where it has one, else the sha256 of the item.
        shuffle: Draw members in a new order each epoch; null does as the inner loader does.
        order_seed: Seed of the training order.

    Raises:
        SplitError: At set-up, whatever would make membership ambiguous.

    Example:
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> split = MembershipSplit(ToyImages(n=40))
        >>> split.prepare_data(); split.setup("fit")
        >>> {role: len(indices) for role, indices in split.roles.items()}
        {'member': 12, 'aux_member': 6, 'aux_nonmember': 8, 'attack_nonmember': 8, 'val': 4, 'holdout': 8}
    """

    def __init__(
        self,
        inner: L.LightningDataModule,
        split_seed: int = 0,
        fractions: dict[str, float | int] | None = None,
        stratify: str | int | None = "auto",
        roles: dict[str, list[int | str]] | str | Path | None = None,
        record_id: str | Callable[[Any, int], Any] | None = None,
        shuffle: bool | None = None,
        order_seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(inner, L.LightningDataModule):
            raise SplitError(
                f"MembershipSplit wraps a LightningDataModule, not a {type(inner).__name__}; wrap datasets with "
                "LightningDataModule.from_datasets(train_dataset=...)."
            )
        self.inner, self.split_seed, self.stratify = inner, split_seed, stratify
        self.fractions = resolve_fractions(fractions)
        self.given_roles, self.record_id, self.shuffle, self.order_seed = roles, record_id, shuffle, order_seed
        self.roles: dict[str, list[int]] = {}
        self.record_ids: list[str] = []
        self.split_record: dict[str, Any] = {}
        self.split_hash = ""
        self._pool: Pool | None = None
        self._inner_stages: set[str] = set()
        self._identity, self._distinct = "", 0
        self._sampler: EpochSampler | None = None
        for hook in TRANSFER_HOOKS:
            # Bound only where the inner one has them, or Lightning would take the default before the module's own.
            if is_overridden(hook, inner):
                setattr(self, hook, getattr(inner, hook))

    @property
    def pool(self) -> Pool:
        """The inner training set and its loader's settings.

        Raises:
            SplitError: Before ``setup``.
        """
        if self._pool is None:
            raise SplitError(
                "MembershipSplit is not set up: call `prepare_data()` and `setup('fit')`, or let the Trainer do it."
            )
        return self._pool

    def prepare_data(self) -> None:
        """Let the inner datamodule prepare its files."""
        self.inner.prepare_data()

    def setup(self, stage: str) -> None:
        """Read the pool and fix the roles; later calls change nothing."""
        self.inner.trainer = self.trainer
        # The pool is the training set, whatever the stage: an audit's trainer only validates.
        fresh = [each for each in dict.fromkeys(["fit", stage]) if each not in self._inner_stages]
        for each in fresh:
            self.inner.setup(each)
            self._inner_stages.add(each)
        if "fit" not in fresh:
            return
        pool = open_pool(self.inner, self.shuffle)
        if self.split_hash:
            if len(pool.dataset) != len(self.record_ids):
                raise SplitError(
                    f"{type(self.inner).__name__} has {len(pool.dataset)} training records now and had "
                    f"{len(self.record_ids)} when the roles were fixed. Make a new MembershipSplit for new data."
                )
        else:
            made = divide(
                pool.dataset,
                split_seed=self.split_seed,
                fractions=self.fractions,
                stratify=self.stratify,
                roles=self.given_roles,
                record_id=self.record_id,
            )
            agree(made.hash)
            self.roles, self.record_ids = made.roles, made.ids
            self.split_record, self.split_hash = made.record, made.hash
            self._identity, self._distinct = made.identity, len(set(made.contents))
            rank_zero_info(self.summary())
        self._pool = pool

    def summary(self) -> str:
        """Return one line with the exact counts."""
        counts = {role: len(indices) for role, indices in self.roles.items()}
        unused = len(self.record_ids) - sum(n for role, n in counts.items() if role != "aux_member")
        named = ", ".join(f"{role} {n}" for role, n in counts.items() if role not in ("member", "aux_member"))
        return (
            f"MembershipSplit: {len(self.record_ids)} records ({self._distinct} distinct), seed {self.split_seed}, "
            f"sha256 {self.split_hash[:12]}: member {counts['member']} (aux_member {counts['aux_member']}, eval_member "
            f"{counts['member'] - counts['aux_member']}), {named}, unused {unused}; identity: {self._identity}"
        )

    def write_split(self, path: str | Path) -> None:
        """Write the split record; ``MembershipSplit(inner, roles=path)`` restores it."""
        write_record_file(path, self.split_record)

    def indices(self, role: str) -> list[int]:
        """Return the dataset indices of a role, ascending; also of ``eval_member``, the members that nobody fits on.

        Raises:
            SplitError: There is no such role.
        """
        _ = self.pool
        if role == "eval_member":
            aux = set(self.roles["aux_member"])
            return [index for index in self.roles["member"] if index not in aux]
        if role not in self.roles:
            raise SplitError(f"There is no role {role!r}; the roles are {', '.join([*self.roles, 'eval_member'])}.")
        return self.roles[role]

    def _check_read(self, index: int, epoch: int, item: Any) -> None:
        """Check that what was read is the record that has the role: a dataset that permutes itself undoes the split."""
        if self._identity == DATASETS_OWN and isinstance(item, Mapping) and isinstance(item.get("record"), int):
            wrong = item["record"] != record_number(self.record_ids[index])
        elif self._identity == ITEM_DIGEST and (index + epoch) % CHECK_EVERY == 0:
            wrong = item_digest(item) != self.record_ids[index]
        else:
            wrong = False
        if wrong:
            raise SplitError(
                f"Record {index} is not the record it was at set-up (the dataset's order or content changed while "
                "training), so members and non-members are mixed. Make the dataset's index stable, or pass `record_id`."
            )

    def subset(self, role: str) -> RoleSubset:
        """Return the records of a role as a dataset."""
        return RoleSubset(self.pool.dataset, self.indices(role), self._check_read)

    def _train_sampler(self) -> EpochSampler:
        rank, world = rank_and_world(self.trainer)
        if self._sampler is None or (self._sampler.rank, self._sampler.world_size) != (rank, world):
            self._sampler = self._new_sampler(rank, world)
        return self._sampler

    def _new_sampler(self, rank: int, world: int) -> EpochSampler:
        return EpochSampler(
            len(self.indices("member")),
            batch_size=self.pool.batch_size,
            shuffle=self.pool.shuffle,
            drop_last=self.pool.drop_last,
            seed=self.order_seed,
            rank=rank,
            world_size=world,
        )

    def train_indices(self, epoch: int, batch_idx: int) -> list[int]:
        """Return the dataset indices in this rank's training batch.

        Args:
            epoch: ``trainer.current_epoch``.
            batch_idx: As in ``training_step``.

        Raises:
            SplitError: The trainer replaced the sampler (``overfit_batches``).
            IndexError: The epoch has no such batch.
        """
        if getattr(self.trainer, "overfit_batches", 0):
            raise SplitError(
                "Trainer(overfit_batches=...) replaces MembershipSplit's order; use limit_train_batches instead."
            )
        members = self.indices("member")
        return [members[position] for position in self._train_sampler().batch(epoch, batch_idx)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the members, in batches exactly like the inner datamodule's."""
        sampler = self._new_sampler(*rank_and_world(self.trainer))
        return resumable_loader(self.subset("member"), sampler, self.trainer, **self.pool.options)

    def loader(self, role: str, batch_size: int | None = None) -> DataLoader[Any]:
        """Return the raw records of a role once, in the order of `indices`, not sharded by rank.

        Args:
            role: A role or ``eval_member``.
            batch_size: Records a batch; None for the inner datamodule's.
        """
        return FixedLoader(self.subset(role), batch_size=batch_size or self.pool.batch_size, **self.pool.options)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the records kept for every choice (early stopping, tuning), in fixed order."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the records that are scored once."""
        return self.loader("holdout")

    def stream(self, role: str, batch_size: int, seed: int, repeat: int = 0) -> RoleStream:
        """Return endless batches of a role, sharded by rank.

        Args:
            role: A role or ``eval_member``.
            batch_size: Records a batch and process.
            seed: Seed of the order.
            repeat: Passes after which the same batches come again; 0 for never.
        """
        rank, world = rank_and_world(self.trainer)
        collate = self.pool.options["collate_fn"]
        return RoleStream(
            self.subset(role), collate, batch_size, seed, role, rank=rank, world_size=world, repeat=repeat
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the split's hash; the place in the training order is the loader's, which Lightning saves too."""
        if self._pool is None:
            return {}
        return {"split_hash": self.split_hash, "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this split.

        Raises:
            SplitError: The checkpoint was trained on another split.
        """
        saved = state_dict["split_hash"]
        if self._pool is not None and saved != self.split_hash:
            raise SplitError(
                f"The checkpoint was trained on split {saved[:12]}, this run's is {self.split_hash[:12]}: other "
                "records are members, so training on or auditing would count members as non-members. Use the "
                "checkpoint's data, split_seed and fractions, or pass its split record as `roles: path/to/split.json`."
            )
        if state_dict["inner"]:
            self.inner.load_state_dict(state_dict["inner"])

    def teardown(self, stage: str) -> None:
        """Let the inner datamodule clean up; the split stays."""
        self.inner.teardown(stage)
        self._inner_stages.discard(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the inner datamodule."""
        self.inner.on_exception(exception)
