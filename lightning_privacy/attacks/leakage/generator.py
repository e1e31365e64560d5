"""A generator network trained on one update: its weights are what is searched for, and its structure is the prior."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from lightning_privacy.attacks.leakage.decoder import PictureDecoder
from lightning_privacy.attacks.leakage.engine import Round, Search, search
from lightning_privacy.attacks.leakage.matching import Matching
from lightning_privacy.attacks.leakage.optimiser import FirstOrder
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import NoSecrets, Pictures, Variables
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["GeneratedPictures", "GeneratorNetwork"]


class GeneratedPictures:
    """Pictures as what a `PictureDecoder` makes of random codes; its weights and the codes are the variables.

    Args:
        width: Channels of the decoder.
        code: Length of a code.
    """

    def __init__(self, width: int = 32, code: int = 64) -> None:
        self.width, self.code = width, code
        self.skeleton: PictureDecoder | None = None

    def start(self, target: LeakageTarget, n: int, generator: torch.Generator) -> Variables:
        """Return a random generator and a code a picture."""
        with torch.device("meta"):
            self.skeleton = PictureDecoder(target.image_shape, self.code, self.width)
        variables = {"codes": torch.randn(n, self.code, generator=generator)}
        for name, value in self.skeleton.named_parameters():
            fan_in = value[0].numel() if value.dim() > 1 else 0
            noise = torch.randn(value.shape, generator=generator)
            variables[name] = noise / fan_in**0.5 if fan_in else torch.zeros(value.shape)
        return variables

    def pictures(self, variables: Variables) -> Pictures:
        """Return what the generator makes of the codes.

        Raises:
            RuntimeError: `start` was not called.
        """
        if self.skeleton is None:
            raise RuntimeError("GeneratedPictures.pictures was called before start; start a search first.")
        weights = {name: variables[name] for name, _ in self.skeleton.named_parameters()}
        return functional_call(self.skeleton, weights, (variables["codes"],))

    def confine(self, variables: Variables) -> Variables:
        """Return the variables: any generator will do."""
        return variables

    def penalty(self, variables: Variables) -> Float[Tensor, ""]:
        """Return zero."""
        return variables["codes"].new_zeros(())


@dataclass(frozen=True)
class GeneratorNetwork:
    """Trains a generator on the one update until what it generates causes that update.

    Deviations: Adam where the paper has RMSprop, no Wasserstein term, labels read off the head, a smaller generator whose codes
    are trained too.

    Args:
        steps: Steps of Adam.
        restarts: Random generators.
        learning_rate: At the start; divided by 10 after 3/8, 5/8 and 7/8 of the steps.
        width: Channels of the generator.
        total_variation: Weight of the pictures' total variation, as a share of the distance at the start.
        tolerance: Share of the distance at the start below which a flat search counts as converged.

    Source:
        GRNN, Ren, Deng and Xie, arXiv 2105.00529, section 3.
    """

    name: ClassVar[str] = "grnn"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = False

    steps: int = 1000  # chosen here for a CPU; 20000 in the key-lock paper's released code
    restarts: int = 2
    learning_rate: float | int = 3e-3  # chosen here
    width: int = 32
    total_variation: float | int = 1e-6  # the key-lock paper's released code
    tolerance: float | int = 1e-3  # chosen here

    def plan(self) -> Search:
        """Return the search."""
        return Search(
            GeneratedPictures(self.width),
            NoSecrets(),
            Matching("l2", self.total_variation),
            FirstOrder(self.steps, self.learning_rate, "adam"),
            self.restarts,
            self.tolerance,
            torch.float32,
        )

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        return search([Round(target, update)], self.plan(), self.name, seed)[0]
