"""What an inversion attacker is given of the victim's model, and what an attack must offer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["Access", "FitRecord", "InversionAttack", "InversionTarget", "Tap"]

Tap = Literal["split", "features", "logits", "probabilities"]
"""Where the attacker listens, from the layer that the client sends away to the published class probabilities."""
Access = Literal["queries", "white_box"]
"""Whether the attacker can only run the model on pictures of its own, or knows its weights too."""


@dataclass(frozen=True)
class InversionTarget:
    """The model that is attacked, frozen, in evaluation mode, with every defence that acts at inference acting.

    Args:
        observe: Pictures in [0, 1] -> what leaves the model at the tap; differentiable in the pictures, the weights take no
            gradient. A defence that adds noise draws it anew at each call.
        tap: Where.
        image_shape: Channels, height and width of the pictures.
        layers: Layers that an attack which knows the defence may look into, by name; empty without white-box access.
    """

    observe: Callable[[Float[Tensor, "batch channels height width"]], Float[Tensor, "batch ..."]]
    tap: Tap
    image_shape: tuple[int, int, int]
    layers: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class FitRecord:
    """How an attacker's training went.

    Args:
        converged: Whether its validation loss had become flat; attacks that train nothing say True.
        history: Training and validation loss at each check, in order.
        steps: Optimizer steps taken.
        seconds: Wall-clock time.
        note: What a reader must know of it.
    """

    converged: bool = True
    history: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    seconds: float = 0.0
    note: str = ""


@runtime_checkable
class InversionAttack(Protocol):
    """An attack on single pictures: fitted on pictures of the attacker's own, then shown what leaked of the victims."""

    name: ClassVar[str]
    access: ClassVar[Access]

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train what the attack needs on the attacker's own pictures.

        Args:
            target: The model.
            aux: Pictures in [0, 1] to train on, none of them a victim.
            aux_val: Pictures in [0, 1] for every choice that the attack makes, apart from ``aux``.
            seed: Of all that is random.
        """
        ...

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return a picture in [0, 1] for each victim.

        Args:
            target: The model.
            observed: What leaked of each victim at the tap; all that the attack learns of the victims.
            seed: Of all that is random.
        """
        ...
