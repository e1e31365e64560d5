"""What an attack on a shared update returns, and what it must offer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.inversion.target import FitRecord
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["AuxiliaryAttack", "LeakageAttack", "Recovered"]


@dataclass(frozen=True)
class Recovered:
    """The records that an attack made of an update.

    Args:
        pictures: One a record, in [0, 1]; in no particular order.
        labels: Their classes, as known or inferred, in the same order.
        matching_loss: Distance between the update that these pictures cause and the shared one, in the attack's own measure
            without priors; of the restart that was chosen because this is the lowest. 0 for an exact solution.
        converged: Whether the matching loss came below the attack's tolerance, a share of ``start_loss``, and stopped
            falling. If it did not, the search failed, and a poor picture is no evidence of privacy.
        start_loss: The same distance at the random starts, on average; 0 where nothing is searched.
        flat: Whether the loss had stopped falling.
        restarts: Matching loss of each restart.
        history: Evaluations so far and best objective, priors included, of the chosen restart.
        secrets: What the attack takes the model's secrets for; empty if it does not estimate them.
        caused: The update that the search's end causes, of what was shared and before pictures are clipped; empty where
            nothing is searched.
        evaluations: Evaluations of the objective and its gradient, restarts side by side counting as one.
        note: What a reader must know.
    """

    pictures: Float[Tensor, "records channels height width"]
    labels: Int[Tensor, " records"]
    matching_loss: float
    converged: bool
    start_loss: float = 0.0
    flat: bool = True
    restarts: tuple[float, ...] = ()
    history: tuple[tuple[int, float], ...] = ()
    secrets: Mapping[str, Tensor] = field(default_factory=dict)
    caused: Mapping[str, Tensor] = field(default_factory=dict)
    evaluations: int = 0
    note: str = ""


@runtime_checkable
class LeakageAttack(Protocol):
    """An attack on one client's update of one round.

    Attributes:
        name: Name in tables, snake case.
        access: What the attacker must have, in words.
        estimates_secrets: Whether it copes with a target that has secrets.
    """

    name: ClassVar[str]
    access: ClassVar[str]
    estimates_secrets: ClassVar[bool]

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return what the update gives away of the client's records.

        Args:
            target: The model as the attacker knows it; it is not changed.
            update: What the client shared.
            seed: Of all that is random.
        """
        ...


@runtime_checkable
class AuxiliaryAttack(LeakageAttack, Protocol):
    """An attack that first learns from pictures of the attacker's own."""

    def fit(
        self,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train what the attack needs; once for all victims.

        Args:
            aux: Pictures in [0, 1] to train on, none of them a victim.
            aux_val: Pictures for every choice that the attack makes, apart from ``aux``.
            seed: Of all that is random.
        """
        ...
