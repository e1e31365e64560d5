"""A DataLoader that Lightning resumes in the middle of an epoch, exactly."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.random_scope import own_random_state

__all__ = ["FixedLoader", "ResumableLoader", "rank_and_world", "resumable_loader"]


def rank_and_world(trainer: L.Trainer | None) -> tuple[int, int]:
    """Return rank and number of processes: the trainer's, else torch.distributed's, else one process."""
    if trainer is not None:
        return trainer.global_rank, trainer.world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` over an `EpochSampler`; Lightning finds `state_dict` and saves it with its loops.

    The constructor is that of `DataLoader`, because Lightning may build a copy (``overfit_batches``).
    """

    trainer: L.Trainer | None = None
    serving: int | None = None
    """Epoch of the last iteration that handed out a batch."""
    served = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  lazy, see below
        """Yield batches.

        A generator, so nothing is fetched before the first batch is asked for: Lightning calls ``iter`` before it tells
        the sampler the epoch.
        """
        sampler = self.sampler
        self.served = 0
        if isinstance(sampler, EpochSampler):
            self.serving, self.served = sampler.epoch, sampler.start
            # The workers' seeds come from here and not from the global random state, which stays as it was.
            self.generator = torch.Generator().manual_seed(
                derive_seed("workers", sampler.seed, sampler.epoch, sampler.rank)
            )
        for batch in super().__iter__():
            self.served += 1
            yield batch

    def _consumed(self) -> int:
        """Return the finished batches of this epoch; neither what workers fetched ahead nor a failed step counts."""
        if self.trainer is None:
            return self.served
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.current.processed

    def state_dict(self) -> dict[str, int]:
        """Return epoch and position as plain integers; empty where Lightning replaced the sampler."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        if self.serving is None:
            # Lightning's counters are those of an earlier epoch until the first batch.
            return self.sampler.state_dict(self.sampler.epoch, self.sampler.start)
        limit = None if self.trainer is None else self.trainer.num_training_batches
        return self.sampler.state_dict(self.serving, self._consumed(), limit)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position.

        Raises:
            SplitError: The saved order is another one.
        """
        if state and isinstance(self.sampler, EpochSampler):
            self.sampler.load_state_dict(state)
            self.serving = None


def resumable_loader(
    dataset: Any, sampler: EpochSampler, trainer: L.Trainer | None = None, **options: Any
) -> ResumableLoader:
    """Return a loader that resumes in the middle of an epoch.

    Args:
        dataset: Map-style dataset; it is indexed with `EpochIndex`.
        sampler: Order and batch size.
        trainer: Whose progress tells what was consumed; None counts the batches handed out.
        **options: Further arguments of `DataLoader`.
    """
    loader = ResumableLoader(
        dataset, batch_size=sampler.batch_size, sampler=sampler, drop_last=sampler.drop_last, **options
    )
    loader.trainer = trainer
    return loader


class FixedLoader(DataLoader[Any]):
    """A `DataLoader` whose batches are the same each time it is read, and which leaves the global random state alone.

    Random augmentation, where the dataset has any, is drawn from a fixed state.
    """

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  a generator
        """Yield batches in order."""
        with own_random_state("fixed loader"):
            batches = iter(super().__iter__())
        for number in range(len(self)):
            with own_random_state("fixed loader", number):
                batch = next(batches)
            yield batch
