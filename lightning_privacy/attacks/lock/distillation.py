"""Another network that learns what the locked model says."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from lightning_privacy.attacks.lock.descent import train_best
from lightning_privacy.attacks.lock.guessing import NoKey
from lightning_privacy.attacks.lock.residual import MeanResidual
from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Distillation:
    """Trains a network anew on raw pictures to say what the locked model says of them behind the best of some attacks.

    Args:
        steps: Of training.
        rate: Learning rate.
    """

    name: ClassVar[str] = "distillation"
    access: ClassVar[str] = "queries and a few pairs of raw and edited pictures"
    steps: int = 300  # chosen here
    rate: float = 2e-3

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the student; see `LockAttack`."""
        found = {NoKey.name: NoKey().unlock(model, own, seed)}
        if own.edited is not None:
            found[MeanResidual.name] = MeanResidual().unlock(model, own, seed)
        teacher = max(found, key=lambda name: found[name].own_accuracy)
        with torch.no_grad():
            soft = found[teacher].classify(own.images).float().softmax(1)
        student = model.fresh(seed)
        trained = train_best(
            student,
            lambda rows: F.cross_entropy(student(own.images[rows]).float(), soft[rows]),
            len(own.images),
            student,
            (own.val_images, own.val_labels),
            rate=self.rate,
            steps=self.steps,
            batch=16,
            seed=seed,
        )
        cost = Cost(pairs=found[teacher].cost.pairs, queries=len(own.images), steps=self.steps)
        return Unlocked(trained.network, trained.accuracy, cost, f"taught by {teacher}", trained.converged)
