"""The mean of a few edits, added to any picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked, accuracy_of
from lightning_privacy.errors import InputError

__all__ = ["MeanResidual"]


@dataclass(frozen=True)
class MeanResidual:
    """Averages ``e - x`` over pictures seen raw (x) and edited (e), and adds it to whatever is to be classified.

    It undoes a lock that has learned a pattern which all edits share, such as that of one fixed starting noise.

    Args:
        weights: Candidates for what the mean is multiplied by; the attacker's own pictures choose.
    """

    name: ClassVar[str] = "mean_residual"
    access: ClassVar[str] = "queries and a few pairs of raw and edited pictures"
    weights: Sequence[float] = (0.5, 1.0, 1.5, 2.0)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the sum; see `LockAttack`.

        Raises:
            InputError: there are no pairs.
        """
        if own.edited is None:
            raise InputError("The mean residual needs pairs of raw and edited pictures, and the attacker has none.")
        mean = (own.edited - own.images).mean(0)
        n = len(own.val_images)
        by = {
            w: accuracy_of(lambda x, w=w: model.scores((x + w * mean).clamp(0, 1)), own.val_images, own.val_labels)
            for w in self.weights
        }
        best = max(by, key=lambda w: by[w])
        cost = Cost(pairs=len(own.images), queries=n * len(by))

        def edit(x: Tensor) -> Tensor:
            return (x + best * mean.to(x)).clamp(0, 1)

        return Unlocked(lambda x: model.scores(edit(x)), by[best], cost, f"{best:g} times the mean", edit=edit)
