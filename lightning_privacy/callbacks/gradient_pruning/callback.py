"""The GradientPruning defence: says when the mathematics of `functional` is applied in a training run."""

from typing import ClassVar, get_args

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.gradient_pruning.attack import SurvivorMatching
from lightning_privacy.callbacks.gradient_pruning.functional import Scope, energy_kept, prune
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of, put_gradients
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["GradientPruning"]


class GradientPruning(Defence):
    """Train and share with the largest entries of the gradient alone (arXiv 1906.08935).

    Args:
        share: Share of the entries that are set to zero, from 0 to below 1; 0 prunes nothing.
        scope: ``tensor`` prunes that share of each parameter's gradient, ``global`` of all entries together.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> update = {"w": torch.tensor([5.0, 1.0])}
        >>> GradientPruning(share=0.5).defended_update(update, torch.Generator())["w"].tolist()
        [5.0, 0.0]

    Source:
        Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section on defences.
    """

    name: ClassVar[str] = "gradient_pruning"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.GRADIENT})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.callbacks.gradient_pruning.attack:SurvivorMatching",
        # its cosine reads little else than the largest entries
        "lightning_privacy.attacks.leakage.inverting_gradients:InvertingGradients",
    )
    guarantee: str = "none: the entries that survive may give the records away; measured against the attacks named"
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )
    breaks = frozenset({Property.PLAIN_GRADIENTS})

    def __init__(
        self,
        share: float | int = 0.9,  # chosen here; arXiv 1906.08935 finds its attack to fail where more than .2 is pruned
        scope: Scope = "tensor",
    ) -> None:
        if not 0 <= share < 1:
            raise InputError(f"GradientPruning: `share` is {share}; it must be at least 0 and below 1.")
        if scope not in get_args(Scope):
            raise InputError(f"GradientPruning: `scope` is {scope!r}; it must be one of {get_args(Scope)}.")
        super().__init__()
        self.share = share
        self.scope: Scope = scope

    def defended_update(self, gradients: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of an update.

        Args:
            gradients: A gradient or a weight difference, by parameter name; not changed.
            generator: Not drawn from: pruning is deterministic.
        """
        return prune(gradients, self.share, self.scope)

    def informed_attacks(self) -> tuple[LeakageAttack, ...]:
        """Return the attacks that know this defence with its settings."""
        return (SurvivorMatching(),)

    def transform_gradients(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Prune the gradient of this step in place, the same on every rank."""
        gradients = gradients_of(module, optimizer, self.name)
        if not gradients:
            return
        pruned = prune(gradients, self.share, self.scope)
        module.log(f"defence/{self.name}/energy_kept", energy_kept(gradients, pruned), on_step=True, on_epoch=False)
        put_gradients(gradients, pruned)
