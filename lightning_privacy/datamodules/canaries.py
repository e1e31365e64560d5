"""A datamodule around a membership split that plants canaries among the members."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Bool
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from lightning_privacy.datamodules.canary_records import KINDS, CanarySubset, Planting, plant
from lightning_privacy.datamodules.division import agree
from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.membership_split import TRANSFER_HOOKS, MembershipSplit
from lightning_privacy.datamodules.pool import EpochIndex, Pool
from lightning_privacy.datamodules.resumable_loader import FixedLoader, rank_and_world, resumable_loader
from lightning_privacy.datamodules.role_stream import RoleStream
from lightning_privacy.datamodules.split_record import hash_record, write_record_file
from lightning_privacy.errors import InputError, SplitError

__all__ = ["CANARY_ROLES", "CanaryData"]

CANARY_ROLES = ("canary", "canary_in", "canary_out")
"""All canaries, those that are trained on, those that are not."""


class CanaryData(L.LightningDataModule):
    """Plants canaries among the members of a `MembershipSplit`; a recorded fair coin decides which are trained on.

    It goes *around* the split, because membership of a canary must be the coin's and no fraction's: every role of the
    split stays exactly as it was, validation and hold-out included, and training reads members and the canaries whose
    coin fell on "in". The roles ``canary``, ``canary_in`` and ``canary_out`` can be loaded like any other. Coins,
    labels and identities are written as ``canaries.json`` beside the split record. `CanaryAudit` turns them into a
    lower bound on epsilon from this one training run.

    Mislabelled canaries copy records that no role uses, so leave some over (fractions that sum to less than 1); where
    they do not suffice, members are copied, which then stand in the training set with two labels.

    Args:
        inner: The `MembershipSplit`.
        count: How many canaries; about half are trained on.
        kind: ``mislabelled`` (a real picture with a wrong class or caption) or ``crafted`` (a chequered noisy picture
            with a random one).
        seed: Of coins, sources, labels and pictures.

    Raises:
        InputError: ``kind`` or ``count`` is out of range, or items have no class and no caption.
        SplitError: ``inner`` is no `MembershipSplit`, or there are too few records or classes.

    Example:
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> data = CanaryData(MembershipSplit(ToyImages(n=80)), count=10, kind="crafted")
        >>> data.prepare_data(); data.setup("fit")
        >>> len(data.indices("canary")), len(data.indices("canary_in")) + len(data.indices("canary_out"))
        (10, 10)

    Source:
        One run: arXiv 2305.08846; mislabelled canaries as the most vulnerable records: arXiv 2404.17399.
    """

    def __init__(
        self,
        inner: L.LightningDataModule,
        count: int = 200,  # chosen here: all 200 right show epsilon 4.19 at 95 %
        kind: str = "mislabelled",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(inner, MembershipSplit):
            raise SplitError(
                f"CanaryData goes around a MembershipSplit, not a {type(inner).__name__}: "
                "CanaryData(MembershipSplit(YourData()))."
            )
        if kind not in KINDS or count < 2:
            raise InputError(
                f"CanaryData needs kind {' or '.join(KINDS)} and count >= 2, but got {kind!r} and {count}."
            )
        self.inner, self.count, self.kind, self.seed = inner, count, kind, seed
        self.canary_hash = ""
        self.record_ids: list[str] = []
        """Identities of the split's records, then of the canaries."""
        self._planting: Planting | None = None
        for hook in TRANSFER_HOOKS:
            # Bound only where the inner one has them, or Lightning would take the default before the module's own.
            if is_overridden(hook, inner.inner):
                setattr(self, hook, getattr(inner.inner, hook))

    @property
    def planting(self) -> Planting:
        """The canaries.

        Raises:
            SplitError: Before ``setup``.
        """
        if self._planting is None:
            raise SplitError("CanaryData is not set up: call `prepare_data()` and `setup('fit')`, or let the Trainer.")
        return self._planting

    @property
    def coins(self) -> Bool[Tensor, " canaries"]:
        """Whether each canary is trained on."""
        return torch.tensor([c.included for c in self.planting.canaries])

    @property
    def canary_record(self) -> dict[str, Any]:
        """What ``canaries.json`` holds."""
        return {
            "version": 1,
            "split": self.split_hash,
            "kind": self.kind,
            "seed": self.seed,
            "canaries": [canary.plain() for canary in self.planting.canaries],
        }

    @property
    def pool(self) -> Pool:
        """The split's pool; canaries are not in it."""
        return self.inner.pool

    @property
    def roles(self) -> dict[str, list[int]]:
        """The split's roles, without the canaries."""
        return self.inner.roles

    @property
    def split_record(self) -> dict[str, Any]:
        """The split's record."""
        return self.inner.split_record

    @property
    def split_hash(self) -> str:
        """The split's hash: its roles are untouched by canaries."""
        return self.inner.split_hash

    def prepare_data(self) -> None:
        """Let the split prepare its files."""
        self.inner.prepare_data()

    def setup(self, stage: str) -> None:
        """Fix the roles, then draw the canaries; later calls change nothing."""
        self.inner.trainer = self.trainer
        self.inner.setup(stage)
        if self._planting is None:
            self._planting = plant(self.inner, self.count, self.kind, self.seed)
            self.record_ids = [*self.inner.record_ids, *(canary.id for canary in self._planting.canaries)]
            self.canary_hash = hash_record(self.canary_record)
            agree(self.canary_hash)
            rank_zero_info(self.summary())

    def summary(self) -> str:
        """Return one line with the exact counts."""
        canaries = self.planting.canaries
        roles: dict[str, int] = {}
        for canary in canaries:
            roles[canary.source_role] = roles.get(canary.source_role, 0) + 1
        made = ", ".join(f"{role} {n}" for role, n in roles.items())
        return (
            f"CanaryData: {len(canaries)} {self.kind} canaries ({made}), {int(self.coins.sum())} of them trained on by "
            f"fair coins, seed {self.seed}, sha256 {self.canary_hash[:12]}"
        )

    def write_split(self, path: str | Path) -> None:
        """Write the split record, and ``canaries.json`` beside it."""
        self.inner.write_split(path)
        self.write_canaries(Path(path).with_name("canaries.json"))

    def write_canaries(self, path: str | Path) -> None:
        """Write the canaries with their coins; the file names them all, so keep it from whoever attacks."""
        write_record_file(path, self.canary_record)

    def _numbers(self, role: str) -> list[int]:
        wanted = {"canary": (True, False), "canary_in": (True,), "canary_out": (False,)}[role]
        return [k for k, canary in enumerate(self.planting.canaries) if canary.included in wanted]

    def indices(self, role: str) -> list[int]:
        """Return the indices of a role of the split, or of canaries, which are numbered after the pool.

        Raises:
            SplitError: There is no such role.
        """
        if role in CANARY_ROLES:
            return [len(self.inner.record_ids) + k for k in self._numbers(role)]
        return self.inner.indices(role)

    def subset(self, role: str) -> Dataset[Any]:
        """Return the records of a role as a dataset."""
        if role in CANARY_ROLES:
            return CanarySubset(self.planting, self.pool.dataset, self._numbers(role))
        return self.inner.subset(role)

    def train_indices(self, epoch: int, batch_idx: int) -> list[int]:
        """Return the indices in this rank's training batch; those from the pool's length on are canaries.

        Args:
            epoch: ``trainer.current_epoch``.
            batch_idx: As in ``training_step``.

        Raises:
            SplitError: The trainer replaced the sampler (``overfit_batches``).
            IndexError: The epoch has no such batch.
        """
        if getattr(self.trainer, "overfit_batches", 0):
            raise SplitError(
                "Trainer(overfit_batches=...) replaces CanaryData's order; use limit_train_batches instead."
            )
        every = [*self.indices("member"), *self.indices("canary_in")]
        return [every[position] for position in self._sampler().batch(epoch, batch_idx)]

    def _sampler(self) -> EpochSampler:
        rank, world = rank_and_world(self.trainer)
        return EpochSampler(
            len(self.indices("member")) + len(self._numbers("canary_in")),
            batch_size=self.pool.batch_size,
            shuffle=self.pool.shuffle,
            drop_last=self.pool.drop_last,
            seed=self.inner.order_seed,
            rank=rank,
            world_size=world,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the members and the canaries whose coin fell on "in", in batches exactly like the user's."""
        joined = _Joined([self.subset("member"), self.subset("canary_in")])
        return resumable_loader(joined, self._sampler(), self.trainer, **self.pool.options)

    def loader(self, role: str, batch_size: int | None = None) -> DataLoader[Any]:
        """Return the raw records of a role once, in the order of `indices`, not sharded by rank.

        Args:
            role: A role of the split, ``eval_member``, or a role of canaries.
            batch_size: Records a batch; None for the user's.
        """
        return FixedLoader(self.subset(role), batch_size=batch_size or self.pool.batch_size, **self.pool.options)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the split's validation records: no canary."""
        return self.inner.val_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the split's hold-out: no canary."""
        return self.inner.test_dataloader()

    def stream(self, role: str, batch_size: int, seed: int, repeat: int = 0) -> RoleStream:
        """Return endless batches of a role of the split; see `MembershipSplit.stream`."""
        return self.inner.stream(role, batch_size, seed, repeat)

    def state_dict(self) -> dict[str, Any]:
        """Return the hashes of split and canaries."""
        if self._planting is None:
            return {}
        return {
            "split_hash": self.split_hash,
            "canary_hash": self.canary_hash,
            "inner": self.inner.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this split and these canaries.

        Raises:
            SplitError: The checkpoint was trained on others.
        """
        self.inner.load_state_dict(state_dict["inner"])
        saved = state_dict["canary_hash"]
        if self._planting is not None and saved != self.canary_hash:
            raise SplitError(
                f"The checkpoint was trained with canaries {saved[:12]}, this run's are {self.canary_hash[:12]}: other "
                "coins decided. Use the checkpoint's data, count, kind and seed."
            )

    def teardown(self, stage: str) -> None:
        """Let the split clean up; the canaries stay."""
        self.inner.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the split."""
        self.inner.on_exception(exception)


class _Joined(ConcatDataset[Any]):
    """Records, then canaries; a position that knows its epoch keeps it on the way into either."""

    def __getitem__(self, index: int) -> Any:
        first = self.cumulative_sizes[0]
        part, place = (0, int(index)) if index < first else (1, int(index) - first)
        epoch = getattr(index, "epoch", None)
        return self.datasets[part][place if epoch is None else EpochIndex(place, epoch)]
