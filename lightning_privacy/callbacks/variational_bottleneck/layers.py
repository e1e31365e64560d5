"""The layer that draws a random latent in place of a hidden layer's output."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.noise_tap.functional import unit_noise
from lightning_privacy.callbacks.variational_bottleneck.functional import rate, reparameterise
from lightning_privacy.core.channels import ChannelLinear
from lightning_privacy.core.step_randomness import StepRandomness
from lightning_privacy.errors import InputError

__all__ = ["GaussianBottleneck"]


class GaussianBottleneck(nn.Module):
    """A layer followed by mean and log-variance heads and one draw of the latent for each record.

    The mean head starts as the identity, so that a trained model starts as it was, and sigma starts constant.

    Args:
        inner: The layer.
        channels: Channels of its output, and of the latent.
        initial_std: sigma before training, above 0.
        sample_at_inference: Whether the latent is drawn in evaluation mode too, or is its mean there.
        tap: How the user named the layer.
        place: The layer's full name.

    Example:
        >>> layer = GaussianBottleneck(nn.Linear(3, 5), 5)
        >>> layer(torch.zeros(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        inner: nn.Module,
        channels: int,
        initial_std: float | int = 0.1,
        sample_at_inference: bool = True,
        tap: str = "",
        place: str = "",
    ) -> None:
        super().__init__()
        self.inner = inner
        self.mean, self.log_variance = ChannelLinear(channels, channels), ChannelLinear(channels, channels)
        nn.init.eye_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, 2 * math.log(initial_std))
        self.sample_at_inference, self.tap, self.place = sample_at_inference, tap, place
        self.randomness = StepRandomness()
        self._listening, self._rates = False, None

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, " batch *latent"]:
        """Return a latent of each record, or in evaluation mode without sampling its mean.

        Raises:
            InputError: the layer returns no tensor.
        """
        hidden = self.inner(*args, **kwargs)
        if not isinstance(hidden, Tensor):
            raise InputError(
                f"The layer `{self.place}` returns a {type(hidden).__name__} and no tensor, so that it cannot be a "
                "bottleneck; name a layer inside it."
            )
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # variances and their sums need the range of float32
            wide = torch.promote_types(mean.dtype, torch.float32)
            mu, logvar = mean.to(wide), log_variance.to(wide)
            if self._listening and torch.is_grad_enabled():
                self._rates, self._listening = rate(mu, logvar), False
            if not (self.training or self.sample_at_inference):
                return mean
            noise = unit_noise(mu, "gaussian", self.randomness.generator(mu.device))
            return reparameterise(mu, logvar, noise).to(mean.dtype)

    def listen(self) -> None:
        """Keep the rates of the next pass that takes a gradient: that of the user's own training step."""
        self._listening, self._rates = True, None

    def heard(self) -> Float[Tensor, " batch"] | None:
        """Return the rates that were kept, and let them go; None if the layer has not run."""
        rates, self._rates, self._listening = self._rates, None, False
        return rates

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the graph of a step: copies in the middle of one must be possible."""
        return {**self.__dict__, "_rates": None, "_listening": False}
