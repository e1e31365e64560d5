"""Inverting gradients: pixels whose gradient points where the shared one does, found by Adam on signs."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_privacy.attacks.leakage.engine import Round, Search, search
from lightning_privacy.attacks.leakage.matching import Matching
from lightning_privacy.attacks.leakage.optimiser import FirstOrder
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import NoSecrets, Pixels
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["InvertingGradients"]


@dataclass(frozen=True)
class InvertingGradients:
    """Finds pixels in [0, 1] whose update points in the direction of the shared one, smooth ones first.

    It needs no second derivatives of the activations and suits ReLU networks and batches, where `DeepLeakage` fails.

    Args:
        steps: Steps of Adam on signs.
        restarts: Random starts; the lowest cosine distance wins.
        learning_rate: At the start; divided by 10 after 3/8, 5/8 and 7/8 of the steps.
        total_variation: Weight of the pictures' mean total variation, as a share of the distance at the start.
        layers: Parameters that are matched; None for all.
        tolerance: Share of the distance at the start below which a flat search counts as converged.

    Source:
        Geiping, Bauermeister, Dröge and Moeller, arXiv 2003.14053, section 5 and appendix.
    """

    name: ClassVar[str] = "inverting_gradients"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = False

    steps: int = 1200  # chosen here for a CPU; 4800 to 24000 in the paper
    restarts: int = 4
    learning_rate: float | int = 0.1  # arXiv 2003.14053, appendix
    total_variation: float | int = 1e-3  # chosen here; the paper's 1e-6 to 1e-1 are no shares
    layers: tuple[str, ...] | None = None
    tolerance: float | int = 1e-3  # chosen here: signs leave more of it than L-BFGS

    def plan(self) -> Search:
        """Return the search."""
        return Search(
            Pixels(boxed=True),
            NoSecrets(),
            Matching("cosine", self.total_variation, self.layers),
            FirstOrder(self.steps, self.learning_rate),
            self.restarts,
            self.tolerance,
            torch.float32,
        )

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        return search([Round(target, update)], self.plan(), self.name, seed)[0]
