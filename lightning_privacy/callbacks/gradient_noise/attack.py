"""The attack that knows the noise: the records under which the noisy update is most likely."""

import math
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
from lightning_privacy.callbacks.gradient_noise.functional import Scale, spread
from lightning_privacy.callbacks.noise_tap.functional import Distribution

__all__ = ["LAMBDA", "LikelihoodMatching", "NoiseLikelihood", "most_likely"]

_FLOOR: dict[Distribution, tuple[float, float]] = {"gaussian": (0.5, math.sqrt(0.5)), "laplace": (1.0, 1.0)}
"""Mean and standard deviation of an entry's negative log-likelihood, constants left out, under the true records."""
LAMBDA = 4.0
"""Weight of the prior. Chosen here, on faces that were no victims, LeNet: under noise as long as the signal the aligned SSIM is
.47 with it and .17 without, under a tenth of that noise .85 and .60."""
_SLACK = 0.05  # chosen here: relative noise is known only as far as a noisy tensor's spread tells the clean one's


@dataclass(frozen=True)
class LikelihoodMatching(Matching):
    """How unlikely a noisy update is if the simulated one was the clean one, a mean over entries.

    ``(g - g*)^2 / (2 s^2)`` for Gaussian noise and ``sqrt(2) |g - g*| / s`` for Laplace noise of standard deviation s; the
    parts that do not depend on g are left out. A likelihood has a unit, so that the prior is weighed in it too.

    Args:
        std: Standard deviation of the noise, above 0.
        scale: Its unit.
        distribution: Of the noise.
    """

    std: float | int = 1.0
    scale: Scale = "relative"
    distribution: Distribution = "gaussian"

    def prior_unit(self, start: float) -> float:
        """Return 1: nats an entry, wherever the search starts."""
        return 1.0

    def data_term(self, found: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the negative log-likelihood, see the class.

        Args:
            found: The simulated update, without noise.
            shared: The noisy update.

        Example:
            >>> how = LikelihoodMatching(std=2.0, scale="absolute")
            >>> float(how.data_term({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([5.0, 0.0])}))
            1.0
        """
        names = [name for name in shared if self.layers is None or name in self.layers]
        terms = [self._entries(found[name] - shared[name], shared[name]) for name in names]
        return torch.stack(terms).sum() / sum(shared[name].numel() for name in names)

    def _entries(self, gap: Tensor, noisy: Tensor) -> Float[Tensor, ""]:
        # Clean gradient and noise are independent, so that their squares add up.
        strength = self.std * spread(noisy) / math.sqrt(1 + self.std**2) if self.scale == "relative" else self.std
        unit = gap / (strength + 1e-30)
        return unit.square().sum() / 2 if self.distribution == "gaussian" else math.sqrt(2) * unit.abs().sum()


@dataclass(frozen=True)
class NoiseLikelihood:
    """Finds the records under which a noisy update is most likely, smooth pictures first.

    Every tensor counts as much as its noise lets it. The search has converged where what is left looks like the noise.

    Args:
        std: Of the noise, see `GradientNoise`; above 0.
        scale: Unit of ``std``.
        distribution: Of the noise.
        total_variation: Nats for a difference of 1 between two neighbouring values: the logarithm of a prior under which
            differences have a Laplace law. With little of it a search fits the noise.
        attack: The search whose matching is replaced.

    Source:
        Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022, arXiv 2111.04706: the
        attack that is best against a defence knows the distribution of what the defence shares.
    """

    name: ClassVar[str] = "noise_likelihood"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    std: float | int = 1.0
    scale: Scale = "relative"
    distribution: Distribution = "gaussian"
    total_variation: float | int = LAMBDA
    attack: SearchAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        matching = LikelihoodMatching(
            total_variation=self.total_variation, std=self.std, scale=self.scale, distribution=self.distribution
        )
        return most_likely(self.attack, matching if self.std > 0 else None, target, update, self.name, seed)


def most_likely(
    attack: SearchAttack,
    matching: LikelihoodMatching | None,
    target: LeakageTarget,
    update: SharedUpdate,
    name: str,
    seed: int,
) -> Recovered:
    """Return what a search finds by likelihood; it has converged where what is left is no more than the noise.

    Args:
        attack: The search.
        matching: What takes the place of its distance, its prior in nats for a difference of 1; None where there is no noise.
        target: The model.
        update: What was shared.
        name: Of the attack, for the random numbers.
        seed: Of all that is random.
    """
    how = replace(attack.plan(), secrets=FreeSecrets() if target.secrets else NoSecrets())
    if matching is None:
        return search([Round(target, update)], how, name, seed)[0]
    entries = sum(value.numel() for value in update.values.values())
    values = update.n_records * math.prod(target.image_shape)
    # Both are means: of the entries' likelihood, and of the values' differences.
    weight = matching.total_variation * values / entries
    matching = replace(matching, layers=how.matching.layers, total_variation=weight)
    found = search([Round(target, update)], replace(how, matching=matching), name, seed)[0]
    mean, deviation = _FLOOR[matching.distribution]
    slack = _SLACK if matching.scale == "relative" else 0
    left = mean * (1 + slack) + 2 * deviation / math.sqrt(entries)
    return replace(found, converged=found.flat and found.matching_loss <= left)
