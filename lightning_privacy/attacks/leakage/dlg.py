"""Deep leakage from gradients: pixels whose gradient equals the shared one, found by L-BFGS."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lightning_privacy.attacks.leakage.engine import Round, Search, search
from lightning_privacy.attacks.leakage.lbfgs import LBFGS
from lightning_privacy.attacks.leakage.matching import Matching
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import NoSecrets, Pixels
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["DeepLeakage"]


@dataclass(frozen=True)
class DeepLeakage:
    """Finds pixels whose update is the shared one in squared distance, by L-BFGS from several random starts.

    Deviations, all of which strengthen the attack: labels are read off the head's gradient where it was shared (iDLG) and
    searched for only otherwise; the search is in float64 with a line search that always ends in a sufficient fall (with the
    same number of evaluations on LeNet it reaches what torch.optim.LBFGS does not); the start is closer to grey; there are
    restarts.

    Args:
        evaluations: Evaluations of the model's update and of its gradient, all restarts counting as one.
        restarts: Random starts; the lowest matching loss wins.
        spread: Standard deviation of the start around middle grey.
        memory: Curvature pairs of L-BFGS.
        distance: ``l2``, or ``layerwise``, which gives every parameter the same weight.
        tolerance: Share of the distance at the start below which a flat search counts as converged.
        total_variation: Weight of the pictures' mean total variation, as a share of the distance at the start.

    Example:
        >>> DeepLeakage.paper().restarts
        1

    Source:
        Zhu, Liu and Han, arXiv 1906.08935, algorithm 1; labels from arXiv 2001.02610.
    """

    name: ClassVar[str] = "dlg"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = False

    evaluations: int = 600  # chosen here for a CPU; more is better
    restarts: int = 4  # chosen here: restarts side by side cost little
    spread: float | int = 0.1  # chosen here: SSIM .99 against .66 from the paper's 1, LeNet, 900 evaluations
    memory: int = 100  # torch.optim.LBFGS in the released code keeps as many
    distance: Literal["l2", "layerwise"] = "l2"
    tolerance: float | int = 1e-4  # chosen here, see Search
    total_variation: float | int = 0  # none in the paper; audits set one

    @classmethod
    def paper(cls) -> "DeepLeakage":
        """Return the setting of the paper: one standard normal start, a memory of 100."""
        return cls(evaluations=300, restarts=1, spread=1.0, memory=100)  # arXiv 1906.08935, section 4.1

    def plan(self) -> Search:
        """Return the search."""
        return Search(
            Pixels(self.spread),
            NoSecrets(),
            Matching(self.distance, self.total_variation),
            LBFGS(self.evaluations, self.memory),
            self.restarts,
            self.tolerance,
            torch.float64,
        )

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        return search([Round(target, update)], self.plan(), self.name, seed)[0]
