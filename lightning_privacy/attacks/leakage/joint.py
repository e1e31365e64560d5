"""Pictures and secrets found together: the attack that a hidden scale and shift have to withstand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from jaxtyping import Bool
from torch import Tensor

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack, search
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import FreeSecrets
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["JointOptimisation", "PooledJoint", "dead_channels"]


def dead_channels(target: LeakageTarget, update: SharedUpdate) -> dict[str, Bool[Tensor, " channels"]]:
    """Return which entries of a secret scale are zero: those whose channel of the layer before gets no gradient.

    A lock with ReLU switches channels off, and an exact zero in what was shared says which.

    Args:
        target: The model; secrets without `gates` are passed over.
        update: The shared update.
    """
    found = {}
    for name, secret in target.secrets.items():
        if secret.gates is not None and secret.nonnegative and secret.gates in update.values:
            found[name] = ~update.values[secret.gates].flatten(1).any(1)
    return {name: dead for name, dead in found.items() if not dead.all()}


@dataclass(frozen=True)
class JointOptimisation:
    """Searches for the pictures and for the secrets of the model at once, whatever key and lock the secrets came from.

    A locked normalisation layer of C channels hides 2C numbers, against as many equations as the update has entries, and the
    same 2C numbers stand behind every update of a round: several of them can be attacked together.

    Args:
        attack: The search that is extended.
        begin: Where the secrets start, see `FreeSecrets`.

    Source:
        In the manner in which dropout masks were searched for together with the pictures, arXiv 2208.06163.
    """

    name: ClassVar[str] = "joint"
    access: ClassVar[str] = "public weights, the form of the lock and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: SearchAttack = field(default_factory=DeepLeakage)
    begin: Literal["draw", "mean", "one"] = "draw"

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update and the secrets; see `LeakageAttack`."""
        return self.reconstruct_rounds([Round(target, update)], seed)[0]

    def reconstruct_rounds(self, rounds: Sequence[Round], seed: int) -> list[Recovered]:
        """Return the records behind each of several updates of one client, and the secrets they share.

        Args:
            rounds: The model as it was sent out and the update that came back, once a round.
            seed: Of all that is random.
        """
        zero: dict[str, Tensor] = {}
        for seen in rounds:
            for name, dead in dead_channels(seen.target, seen.update).items():
                zero[name] = zero[name] & dead if name in zero else dead
        how = replace(self.attack.plan(), secrets=FreeSecrets(self.begin, zero))
        return search(rounds, how, self.name, seed)


@dataclass(frozen=True)
class PooledJoint(JointOptimisation):
    """`JointOptimisation` on several updates of one client at once, which share the secrets: more equations, as many unknowns.

    An audit gives it updates of one state of the model, as if the secrets stood still between rounds. They drift, slowly, and
    that favours the attacker.

    Args:
        attack: The search that is extended.
        begin: Where the secrets start, see `FreeSecrets`.
        updates: How many updates are attacked at once, where there are as many.

    Raises:
        InputError: there are to be fewer than two.
    """

    name: ClassVar[str] = "joint_pooled"
    access: ClassVar[str] = "public weights, the form of the lock and several updates under the same secrets"

    updates: int = 4  # chosen here: the secrets' equations grow with it, and so does the search's memory

    def __post_init__(self) -> None:
        if self.updates < 2:
            raise InputError(f"PooledJoint pools at least 2 updates, not {self.updates}; `joint` attacks one alone.")
