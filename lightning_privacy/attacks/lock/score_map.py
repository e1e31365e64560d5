"""A linear map from what the locked model says of raw pictures to their classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked, accuracy_of

__all__ = ["ScoreMap"]


@dataclass(frozen=True)
class ScoreMap:
    """Fits a multinomial logistic regression on the model's log-probabilities of raw pictures.

    Wrong labels on raw pictures are still a function of the right ones: a model that avoids the right class, or always says
    another one, tells it to whoever has seen a few examples.

    Args:
        decays: Candidates for the weight of the squared weights; the attacker's own pictures choose.
    """

    name: ClassVar[str] = "score_map"
    access: ClassVar[str] = "queries and labelled raw pictures"
    decays: Sequence[float] = (1e-3, 1e-2, 1e-1)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model with the map behind it; see `LockAttack`."""
        with torch.no_grad():
            said = _centred(model.scores(own.images))
        tried = {decay: _fit(said, own.labels, model.classes, decay) for decay in self.decays}

        def accuracy(decay: float) -> float:
            return accuracy_of(lambda x: tried[decay](_centred(model.scores(x))), own.val_images, own.val_labels)

        best = max(tried, key=accuracy)
        cost = Cost(labels=len(own.images), queries=len(own.images) + len(own.val_images))
        return Unlocked(
            lambda x: tried[best](_centred(model.scores(x))), accuracy(best), cost, f"weight decay {best:g}"
        )


def _centred(scores: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    logs = scores.float().log_softmax(1)
    return (logs - logs.mean(1, keepdim=True)) / logs.std(1, keepdim=True).clamp_min(1e-6)


@torch.enable_grad()
def _fit(said: Tensor, labels: Tensor, classes: int, decay: float) -> nn.Linear:
    head = nn.Linear(said.shape[1], classes).to(said.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(said), labels) + decay * head.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)
