"""What an attacker on a locked model has, and what an attack gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Cost", "LockAttack", "LockedModel", "OwnPictures", "Unlocked", "accuracy_of"]

Pictures = Float[Tensor, "n channels height width"]
Scores = Float[Tensor, "n classes"]
Edit = Callable[[Pictures], Pictures]


@dataclass(frozen=True)
class LockedModel:
    """A stolen model. A reject class is no column of its scores: whoever attacks leaves it out.

    Args:
        scores: Pictures -> class scores by the frozen model; gradients reach the pictures.
        copy: Makes a copy, pictures -> class scores, whose weights may be trained.
        classes: Number of classes.
    """

    scores: Callable[[Pictures], Scores]
    copy: Callable[[], nn.Module]
    classes: int

    def fresh(self, seed: int) -> nn.Module:
        """Return the same network with weights drawn anew: for training without the stolen ones.

        Args:
            seed: Of the weights.
        """
        network = self.copy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in network.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
        return network


@dataclass(frozen=True)
class OwnPictures:
    """The attacker's own pictures; none of them is scored.

    Args:
        images: Raw, in [0, 1], to train on.
        labels: Their classes.
        edited: The same with the key, as somebody's use of the model may have shown; None where none was seen.
        val_images: Raw, for choices of steps, rates and attacks.
        val_labels: Their classes.
    """

    images: Pictures
    labels: Int[Tensor, " n"]
    edited: Pictures | None
    val_images: Float[Tensor, "v channels height width"]
    val_labels: Int[Tensor, " v"]

    def first(self, k: int) -> "OwnPictures":
        """Return the same with ``k`` pictures to train on; those for choices stay, which favours the attacker.

        Args:
            k: At least 1.
        """
        edited = None if self.edited is None else self.edited[:k]
        return replace(self, images=self.images[:k], labels=self.labels[:k], edited=edited)


@dataclass(frozen=True)
class Cost:
    """What an attack takes.

    Args:
        labels: Labelled raw pictures to train on.
        pairs: Pictures seen both raw and edited.
        edits: Pictures edited with guessed keys.
        queries: Pictures put through the model in use.
        steps: Optimizer steps.
    """

    labels: int = 0
    pairs: int = 0
    edits: int = 0
    queries: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Unlocked:
    """What an attack gives: a classifier of raw pictures.

    Args:
        classify: Raw pictures -> class scores.
        own_accuracy: On the attacker's pictures for choices, from 0 to 1.
        cost: What it took.
        chosen: What it chose there, in words.
        converged: Whether longer training would hardly have changed the choice.
        edit: Raw pictures -> what the model is shown; None where it is shown raw ones.
    """

    classify: Callable[[Pictures], Scores]
    own_accuracy: float
    cost: Cost = field(default_factory=Cost)
    chosen: str = ""
    converged: bool = True
    edit: Edit | None = None


@runtime_checkable
class LockAttack(Protocol):
    """A way to use a locked model without its key.

    Attributes:
        name: In results, snake case.
        access: What the attacker must have.
    """

    name: ClassVar[str]
    access: ClassVar[str]

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return a classifier made of the model and the attacker's own pictures.

        Args:
            model: The stolen model, which stays as it is.
            own: The attacker's pictures.
            seed: Of all that is random.
        """
        ...


@torch.no_grad()
def accuracy_of(
    classify: Callable[[Pictures], Scores], images: Pictures, labels: Int[Tensor, " n"], rows: int = 256
) -> float:
    """Return the share of pictures that are classified rightly.

    Args:
        classify: Pictures -> class scores.
        images: Pictures.
        labels: Their classes.
        rows: Pictures at a time.

    Example:
        >>> accuracy_of(lambda x: x.flatten(1), torch.eye(2).view(2, 1, 1, 2), torch.tensor([0, 0]))
        0.5
    """
    found = torch.cat([classify(part).argmax(1) for part in images.split(rows)])
    return float((found == labels).double().mean())
