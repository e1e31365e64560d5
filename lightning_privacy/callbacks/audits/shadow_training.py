"""Shadow models for an audit: trained as the target was, with its defences, as long as it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.callbacks.audits.shadow_signals import Evidence
from lightning_privacy.core.import_path import import_object
from lightning_privacy.errors import InputError

__all__ = ["BuildShadow", "check_count", "resolve_build", "shadow_pool", "train_and_observe", "trainer_arguments"]

BuildShadow = Callable[[int], tuple[L.LightningModule, Sequence[L.Callback]]]
"""seed -> (a new module like the target before training, the target's defences afresh)."""


def check_count(count: int) -> None:
    """Check a number of shadow models.

    Raises:
        InputError: it cannot be balanced.
    """
    if count < 0 or count % 2:
        raise InputError(
            f"MembershipAudit(shadows={count}): shadow models come in pairs, one trained on a record and one not; "
            "give 0 for none, or an even number (16 is usual, 256 for publication)."
        )


def resolve_build(build: str | BuildShadow | None) -> BuildShadow:
    """Return the function that builds shadow models.

    Raises:
        InputError: there is none, or its import path leads nowhere.
    """
    if build is None:
        raise InputError(
            "MembershipAudit(shadows=...) must know how to build a model like the audited one: pass "
            "shadow_build=function, where function(seed) returns (a new module, its defences). The command line does "
            "so by itself from the run's configuration."
        )
    return import_object(build)


def trainer_arguments(trainer: L.Trainer, epochs: int) -> dict[str, Any]:
    """Return the arguments under which a shadow's trainer does to it what the target's did.

    Args:
        trainer: The target's.
        epochs: How many the target was trained; early stopping and the like are thereby repeated, not redecided. Where
            the last of them was broken off, its optimizer steps count instead.
    """
    length = {"max_epochs": -1, "max_steps": trainer.global_step} if _broken_off(trainer) else {"max_epochs": epochs}
    kinds = {CPUAccelerator: "cpu", CUDAAccelerator: "gpu"}
    return {
        **length,
        "limit_train_batches": trainer.limit_train_batches,
        "accelerator": kinds.get(type(trainer.accelerator), "auto"),
        "precision": trainer.precision,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def _broken_off(trainer: L.Trainer) -> bool:
    """Return whether the target's training ended within an epoch, after `max_steps`, `max_time` or an interruption."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if batches.total.completed:  # after `fit`, or restored from the loops in a checkpoint
        return not batches.is_last_batch
    # A checkpoint of weights tells its step at most, and bare weights not even that.
    return 0 < trainer.global_step == trainer.max_steps


def shadow_pool(
    build: BuildShadow,
    trainer: L.Trainer,
    split: Any,
    count: int,
    *,
    epochs: int,
    folder: str | Path | None = None,
    seed: int = 0,
    signature: str | None = None,
) -> Any:
    """Return the pool of a run's shadow models; nothing is trained yet.

    Args:
        build: Makes an untrained copy of the target.
        trainer: The target's.
        split: Its set-up `MembershipSplit`.
        count: Shadow models.
        epochs: Epochs of the target.
        folder: Of the cache; ``shadows`` in the run's folder if None.
        seed: Of the division into inside and outside, and of the shadows' own randomness.
        signature: What else decides the outcome, such as the run's configuration; empty for nothing.
    """
    from lightning_privacy.shadows import ShadowPool

    return ShadowPool(
        build,
        split,
        count,
        trainer=trainer_arguments(trainer, epochs),
        folder=Path(trainer.default_root_dir, "shadows") if folder is None else Path(folder),
        seed=seed,
        signature=signature or None,  # an empty one says nothing
    )


def train_and_observe(pool: Any, queries: int) -> Evidence:
    """Train what is missing and return what the shadows say of every record; the random state is as before."""
    with isolate_rng():
        pool.train()
        return pool.observe(queries=queries)
