"""The change that `NoiseTap` makes to a layer's output."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.noise_tap import functional as math
from lightning_privacy.core.step_randomness import StepRandomness

__all__ = ["AddNoise"]


class AddNoise:
    """Bound a tensor, then add noise, in every mode.

    Args:
        sigma: Standard deviation of the noise; 0 draws none.
        distribution: Of the noise.
        bound: Of the tensor before the noise; None for none.
        bounding: How the bound is enforced.
    """

    def __init__(
        self,
        sigma: float | int,
        distribution: math.Distribution = "gaussian",
        bound: float | int | None = None,
        bounding: math.Bounding = "clip",
    ) -> None:
        self.sigma, self.bound = sigma, bound
        self.distribution: math.Distribution = distribution
        self.bounding: math.Bounding = bounding
        self.randomness = StepRandomness()

    def __call__(self, hidden: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the noisy tensor."""
        if self.bound is not None:
            hidden = math.bounded(hidden, self.bound, self.bounding, self.distribution)
        if self.sigma == 0:
            return hidden
        return math.add_noise(hidden, self.sigma, self.distribution, self.randomness.generator(hidden.device))
