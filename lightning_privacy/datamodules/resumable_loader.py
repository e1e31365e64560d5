"""A DataLoader that Lightning resumes in the middle of an epoch, exactly."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from lightning_privacy.core.randomness import seeded_generator
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


def _mend_epoch_count(trainer: L.Trainer) -> None:
    """Put Lightning's epoch counters right at the first batch of an epoch.

    After resuming from a checkpoint of an epoch's last batch, or with ``max_steps`` from one of its end, Lightning 2.6
    counts an epoch as processed that is not; a checkpoint written then is taken for one of a finished epoch, and
    resuming from it starts the epoch again.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    for count in (progress.current, progress.total):
        count.ready = count.started = count.completed + 1
        count.processed = count.completed


class _Epoch(Iterator[Any]):
    """One iteration of a `ResumableLoader`; nothing is fetched before the first batch is asked for.

    Lightning calls ``iter`` before it has restored its counters and told the sampler the epoch.
    """

    def __init__(self, loader: "ResumableLoader") -> None:
        self.loader = loader
        self.batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self.batches is None:
            self.batches = self.loader.enter_epoch(self)
        batch = next(self.batches)
        self.loader.served += 1
        return batch


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` over an `EpochSampler`; Lightning finds `state_dict` and saves it with its loops.

    The constructor is that of `DataLoader`, because Lightning may build a copy (``overfit_batches``).
    """

    trainer: L.Trainer | None = None
    loaded: dict[str, int] | None = None
    """The saved place from which this loader continues."""
    serving: int | None = None
    """Epoch of the last iteration that handed out a batch."""
    served = 0
    """Batches of that epoch before the next one."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  lazy
        """Yield the batches of the current epoch, from the loaded place on."""
        return _Epoch(self)

    def enter_epoch(self, epoch: _Epoch) -> Iterator[Any]:
        """Return the batches of the epoch that begins or goes on now."""
        sampler, trainer = self.sampler, self.trainer
        if not isinstance(sampler, EpochSampler):
            return super().__iter__()
        if trainer is not None:
            combined = trainer.fit_loop._combined_loader
            lightning = combined is not None and combined._iterator is not None and combined._iterator.iterators
            if lightning and any(each is epoch for each in lightning):
                _mend_epoch_count(trainer)
            if self.loaded is not None and trainer.current_epoch < self.loaded["epoch"]:
                # With `max_steps` Lightning comes back once to the epoch that the checkpoint finished.
                return iter(())
            sampler.set_epoch(trainer.current_epoch)
        self.serving, self.served = sampler.epoch, sampler.start
        # The workers' seeds come from here and not from the global random state, which stays as it was.
        self.generator = seeded_generator("workers", sampler.seed, sampler.epoch, sampler.rank)
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return epoch and position as plain integers; empty where Lightning replaced the sampler."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        if self.serving is None:
            # Until the first batch Lightning's counters are those of an earlier epoch.
            return self.loaded or self.sampler.state_dict(self.sampler.epoch, 0)
        if self.trainer is None:
            return self.sampler.state_dict(self.serving, self.served)
        # What the trainer has finished: neither what workers fetched ahead nor a step that failed.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.sampler.state_dict(self.serving, progress.current.processed, self.trainer.num_training_batches)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved place.

        Raises:
            SplitError: The saved order is another one.
        """
        if state and isinstance(self.sampler, EpochSampler):
            self.sampler.load_state_dict(state)
            self.loaded, self.serving = state, None


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
