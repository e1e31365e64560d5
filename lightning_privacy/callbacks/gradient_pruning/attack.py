"""The attack that knows of pruning: a zero in the update says that an entry is small, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack, search
from lightning_privacy.attacks.leakage.matching import Matching
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import FreeSecrets, NoSecrets
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["MaskedMatching", "SurvivorMatching"]


@dataclass(frozen=True)
class MaskedMatching(Matching):
    """Compares a simulated update with a pruned one where entries survived.

    Args:
        bounded: Whether a simulated entry that was pruned is also asked to be no larger than the smallest survivor of its
            tensor. That bound is true of pruning a tensor, and truer still of pruning all entries together.
    """

    bounded: bool = False

    def data_term(self, found: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the distance of the surviving entries; see `Matching.data_term`.

        Args:
            found: The simulated update, of which nothing is pruned.
            shared: The pruned update.

        Example:
            >>> shared = {"w": torch.tensor([2.0, 0.0])}
            >>> float(MaskedMatching().data_term({"w": torch.tensor([2.0, 1.0])}, shared))
            0.0
            >>> float(MaskedMatching(bounded=True).data_term({"w": torch.tensor([2.0, 4.0])}, shared))
            1.0
        """
        kept = {name: value != 0 for name, value in shared.items()}
        distance = super().data_term({name: found[name] * kept[name] for name in shared}, shared)
        if not self.bounded:
            return distance
        names = [name for name in shared if self.layers is None or name in self.layers]
        over = [_excess(found[n], shared[n], kept[n]) for n in names if bool(kept[n].any())]
        length = torch.stack([shared[n].square().sum() for n in names]).sum()
        return distance + torch.stack(over).sum() / length if over else distance


def _excess(found: Tensor, shared: Tensor, kept: Tensor) -> Float[Tensor, ""]:
    limit = shared[kept].abs().min()
    return ((found.abs() - limit).clamp_min(0) * ~kept).square().sum()


@dataclass(frozen=True)
class SurvivorMatching:
    """Matches the entries of a pruned update that survived, and leaves the others free.

    An attack that does not know of pruning asks for records whose small gradients are exactly zero, of which there are
    none.

    Args:
        attack: The search whose matching is restricted.
        bounded: See `MaskedMatching`.
        total_variation: Weight of the pictures' mean total variation, as a share of the distance at the start: what survives
            are fewer equations than a picture has values.

    Source:
        A defended update is attacked through what is known of the defence: Balunovic et al., arXiv 2111.04706.
    """

    name: ClassVar[str] = "survivors"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: SearchAttack = field(default_factory=DeepLeakage)
    bounded: bool = False
    total_variation: float | int = (
        3e-2  # chosen here: on faces that were no victims .56 for 1e-2, .66 for 1e-1, .30 for 0; 1e-1 blurs digits
    )

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        how = self.attack.plan()
        matching = MaskedMatching(how.matching.distance, self.total_variation, how.matching.layers, self.bounded)
        secrets = FreeSecrets() if target.secrets else NoSecrets()
        return search([Round(target, update)], replace(how, matching=matching, secrets=secrets), self.name, seed)[0]
