r"""Plug & Play Attacks: pictures of a class, drawn from a generator that never saw the model's data.

The loss is the hyperbolic distance between the logits :math:`o`, :math:`u = o / \|o\|_1`, and the class's corner
:math:`v` of the Poincare ball: :math:`\mathrm{arcosh}(1 + 2\|u - v\|^2 / ((1 - \|u\|^2)(1 - \|v\|^2)))`.

Source:
    Struppek et al., ICML 2022, arXiv 2201.12179.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.inversion.crops import random_resized_crops
from lightning_privacy.attacks.inversion.descent import descend
from lightning_privacy.attacks.inversion.generators import PictureGenerator
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.target import InversionTarget
from lightning_privacy.errors import InputError

__all__ = ["ClassPictures", "PlugAndPlay", "poincare_loss"]

_CORNER = 0.9999  # arXiv 2201.12179: the boundary itself is infinitely far away
_INSIDE = 1e-6  # 1 - |u|^2 of logits that are all but one-hot already


@dataclass(frozen=True)
class ClassPictures:
    """What the attack makes of one class.

    Args:
        label: The class.
        pictures: Best first, in [0, 1].
        confidence: The model's confidence in the class, mean over random crops, of each.
        before: The same of the best latents before they were optimised.
    """

    label: int
    pictures: Float[Tensor, "kept channels height width"]
    confidence: Float[Tensor, " kept"]
    before: Float[Tensor, " optimised"]


def poincare_loss(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the distance in the Poincare ball between each row of logits and its class.

    Cross-entropy's gradient vanishes where the model is certain; this one's does not.

    Args:
        logits: Scores, any scale.
        labels: Classes wanted.

    Example:
        >>> near, far = poincare_loss(torch.tensor([[9.0, 0.5], [0.5, 9.0]]), torch.tensor([0, 0]))
        >>> bool(near < far)
        True

    Source:
        arXiv 2201.12179; Nickel and Kiela, arXiv 1705.08039, for the distance.
    """
    u = logits / logits.abs().sum(1, keepdim=True).clamp_min(1e-12)
    v = torch.zeros_like(u).scatter_(1, labels[:, None], _CORNER)
    room = (1 - u.square().sum(1)).clamp_min(_INSIDE) * (1 - _CORNER**2)
    return torch.acosh(1 + 2 * (u - v).square().sum(1) / room)


class PlugAndPlay:
    """Find pictures that a model takes for a class, whatever generator of pictures there is.

    Latents are drawn and ranked by the model's confidence over random crops; the best are optimised under crops drawn anew
    at each step; of those, the ones that stay convincing over many crops are kept. Judge them by a classifier that was
    trained apart, and by features: never pixel by pixel against one picture.

    Args:
        candidates: Latents drawn.
        optimised: Latents optimised a class.
        kept: Pictures kept a class.
        steps: Steps of Adam.
        lr: Its learning rate.
        betas: Its averages.
        search_crops: Crops a latent while drawing.
        final_crops: Crops a picture for the last choice.
        area: Share of a picture's area that a crop keeps, smallest and largest.

    Raises:
        InputError: an argument is out of range.

    Source:
        arXiv 2201.12179, which takes 2,000 candidates, 200 optimised, 50 kept and 100 final crops.
    """

    def __init__(
        self,
        candidates: int = 200,  # chosen here: a tenth of the paper's, for a CPU
        optimised: int = 20,  # likewise
        kept: int = 5,  # likewise
        steps: int = 70,  # the paper's for its faces
        lr: float | int = 0.005,  # arXiv 2201.12179
        betas: tuple[float, float] = (0.1, 0.1),  # arXiv 2201.12179
        search_crops: int = 4,  # chosen here
        final_crops: int = 20,  # chosen here
        area: tuple[float | int, float | int] = (0.9, 1),  # arXiv 2201.12179
    ) -> None:
        if not 1 <= kept <= optimised <= candidates or min(steps, search_crops, final_crops) < 1 or not lr > 0:
            raise InputError(
                "PlugAndPlay needs 1 <= kept <= optimised <= candidates, steps, search_crops and final_crops of at least 1 and "
                f"lr above 0, but got {kept=}, {optimised=}, {candidates=}, {steps=}, {search_crops=}, {final_crops=}, {lr=}."
            )
        self.candidates, self.optimised, self.kept = candidates, optimised, kept
        self.steps, self.lr, self.betas = steps, lr, betas
        self.search_crops, self.final_crops, self.area = search_crops, final_crops, area

    def attack(
        self, target: InversionTarget, generator: PictureGenerator, labels: Sequence[int], seed: int
    ) -> list[ClassPictures]:
        """Return pictures of each class.

        Args:
            target: The model, at its logits.
            generator: Where pictures come from.
            labels: Classes to attack.
            seed: Of latents and crops.

        Raises:
            InputError: the target does not show logits, or has no such class.
        """
        if target.tap != "logits":
            raise InputError(
                f"PlugAndPlay needs the tap `logits`, whose scale tells how certain a model is, but the tap is `{target.tap}`."
            )
        probe = generator.sample(1, torch.Generator().manual_seed(0))
        with own_randomness(seed, "plug_and_play", probe.device) as draws, torch.no_grad():
            latents = generator.sample(self.candidates, draws)
            pictures = torch.cat([generator(part) for part in latents.split(128)])
            trust = self._confidence(target, pictures, self.search_crops, draws)
            if not labels or min(labels) < 0 or max(labels) >= trust.shape[1]:
                raise InputError(
                    f"PlugAndPlay got the classes {list(labels)}, but the model has {trust.shape[1]}, from 0."
                )
            return [self._one(target, generator, latents, trust[:, label], label, draws) for label in labels]

    def _one(
        self,
        target: InversionTarget,
        generator: PictureGenerator,
        latents: Tensor,
        trust: Tensor,
        label: int,
        draws: torch.Generator,
    ) -> ClassPictures:
        best = trust.topk(self.optimised)
        wanted = torch.full((self.optimised,), label, device=latents.device)

        def objective(w: Tensor) -> Tensor:
            return poincare_loss(target.observe(random_resized_crops(generator(w), draws, self.area)).float(), wanted)

        found = descend(objective, latents[best.indices], self.steps, self.lr, self.betas, cosine=False)
        pictures = generator(found)
        final = self._confidence(target, pictures, self.final_crops, draws)[:, label].topk(self.kept)
        return ClassPictures(label, pictures[final.indices].clamp(0, 1), final.values, best.values)

    def _confidence(
        self, target: InversionTarget, pictures: Tensor, crops: int, draws: torch.Generator
    ) -> Float[Tensor, "n classes"]:
        observe: Callable[[Tensor], Tensor] = target.observe
        rounds = [
            torch.cat(
                [
                    observe(part).float().softmax(1)
                    for part in random_resized_crops(pictures, draws, self.area).split(128)
                ]
            )
            for _ in range(crops)
        ]
        return torch.stack(rounds).mean(0)
