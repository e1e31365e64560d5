"""A linear head that reads a random latent of its features."""

from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.variational_bottleneck.layers import GaussianBottleneck
from lightning_privacy.core.channels import ChannelLinear

__all__ = ["BottleneckedHead"]


class BottleneckedHead(nn.Module):
    """A linear head behind a variational bottleneck: encoder, one draw of the latent, decoder.

    Names are ``latent.mean`` and ``latent.log_variance`` (encoder), ``decoder`` and ``head``, which is the layer itself.

    Args:
        head: The layer.
        latents: Size of the latent.
        sample_at_inference: Whether the latent is drawn in evaluation mode too, or is its mean there.
        place: The head's full name, for errors.

    Example:
        >>> import torch
        >>> layer = BottleneckedHead(nn.Linear(12, 3), latents=4)
        >>> layer(torch.zeros(2, 12)).shape, layer.latent.mean.weight.shape
        (torch.Size([2, 3]), torch.Size([4, 12]))
    """

    def __init__(self, head: nn.Linear, latents: int, sample_at_inference: bool = False, place: str = "") -> None:
        super().__init__()
        features = head.in_features
        self.latent = GaussianBottleneck(nn.Identity(), latents, sample_at_inference=sample_at_inference, place=place)
        # Heads from the features, of another width than the latent: with PyTorch's start sigma is about 1, the prior's.
        self.latent.mean = ChannelLinear(features, latents)
        self.latent.log_variance = ChannelLinear(features, latents)
        self.decoder = nn.Linear(latents, features)
        self.head = head

    def forward(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        """Return the head's output for features that are decoded from a latent."""
        return self.head(self.decoder(self.latent(features)))
