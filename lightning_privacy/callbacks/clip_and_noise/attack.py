"""The attack that knows the clipping and the noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import SearchAttack
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.callbacks.clip_and_noise.functional import clipped, noise_std
from lightning_privacy.callbacks.gradient_noise.attack import LAMBDA, LikelihoodMatching, most_likely

__all__ = ["ClippedLikelihood", "ClippedMatching"]


@dataclass(frozen=True)
class ClippedMatching(LikelihoodMatching):
    """How unlikely a clipped and noisy update is, if the simulated one was what the client clipped.

    Args:
        max_norm: C, above 0.
    """

    max_norm: float | int = 1.0

    def data_term(self, found: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the negative log-likelihood of the clipped update, see `LikelihoodMatching`.

        Args:
            found: The simulated update before clipping, all that was shared of it.
            shared: The update as it was shared.

        Example:
            >>> import torch
            >>> how = ClippedMatching(std=1.0, scale="absolute", max_norm=5.0)
            >>> round(float(how.data_term({"w": torch.tensor([6.0, 8.0])}, {"w": torch.tensor([3.0, 4.0])})), 6)
            0.0
        """
        return super().data_term(clipped({name: found[name] for name in shared}, self.max_norm), shared)


@dataclass(frozen=True)
class ClippedLikelihood:
    """Finds the records under which an update that was clipped as a whole, and then made noisy, is most likely.

    For one record that is also what clipping by record amounts to. Of several records clipped one by one it knows the
    noise, and supposes that their mean was clipped.

    Args:
        max_norm: C, above 0.
        noise_multiplier: sigma, at least 0; 0 matches the clipped update without noise.
        units: Clipped gradients whose mean is shared.
        total_variation: See `NoiseLikelihood`.
        attack: The search whose matching is replaced.

    Source:
        Balunovic et al., ICLR 2022, arXiv 2111.04706.
    """

    name: ClassVar[str] = "clipped_likelihood"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    max_norm: float | int = 1.0
    noise_multiplier: float | int = 0.01
    units: int = 1
    total_variation: float | int = LAMBDA  # as NoiseLikelihood
    attack: SearchAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        # Without noise any small deviation serves: the likelihood is then the squared distance in other units.
        std = noise_std(self.max_norm, self.noise_multiplier or _QUIET, self.units)
        matching = ClippedMatching(
            total_variation=self.total_variation, std=std, scale="absolute", max_norm=self.max_norm
        )
        return most_likely(self.attack, matching, target, update, self.name, seed)


_QUIET = 1e-6  # chosen here: the share of C to which a noiseless update is to be matched
