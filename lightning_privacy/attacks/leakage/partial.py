"""Matching only layers that a defence leaves readable: those behind a lock, or the head alone."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack, search
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import FreeSecrets, NoSecrets
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["PartialMatching"]


@dataclass(frozen=True)
class PartialMatching:
    """Matches some layers of the update only; secrets, if there are any, are searched for too.

    Where a defence perturbs or withholds what some layers share, those layers lead an attack astray, and leaving them out
    restores it.

    Args:
        layers: What parameter names start with, e.g. ``("conv2", "conv3", "head")`` for the layers behind a lock.
        attack: The search that is restricted.

    Source:
        Leaving out the layers of a stochastic bottleneck, arXiv 2208.04767; matching a part of the gradient, arXiv 2506.08435.
    """

    name: ClassVar[str] = "partial"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    layers: tuple[str, ...] = ("head",)
    attack: SearchAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`.

        Raises:
            InputError: No shared parameter belongs to the layers.
        """
        kept = tuple(n for n in update.values if any(n == x or n.startswith(f"{x}.") for x in self.layers))
        if not kept:
            raise InputError(f"No shared parameter belongs to {self.layers}; choose among {sorted(update.values)}.")
        how = self.attack.plan()
        how = replace(how, matching=replace(how.matching, layers=kept))
        how = replace(how, secrets=FreeSecrets() if target.secrets else NoSecrets())
        return search([Round(target, update)], how, self.name, seed)[0]
