"""An autoencoder of the attacker's own pictures: a prior for a search, a sampler and a ceiling."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.decoder import InversionNetwork
from lightning_privacy.attacks.inversion.flatness import FlatnessRule, train_until_flat
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.picture_loss import picture_loss
from lightning_privacy.attacks.inversion.target import FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.views import ObservedViews

__all__ = ["Autoencoder", "LatentSpread", "train_autoencoder"]


@dataclass(frozen=True)
class LatentSpread:
    """Where the latents of the attacker's own pictures lie.

    Args:
        mean: Their mean.
        root: A square root R of their covariance: ``mean + e @ R.T`` has it where e is standard normal.
    """

    mean: Float[Tensor, " dim"]
    root: Float[Tensor, "dim dim"]


class Autoencoder(nn.Module):
    """Pictures to a vector and back.

    Args:
        image_shape: Channels, height and width.
        latent_dim: Length of the vector.
        width: Channels inside.

    Example:
        >>> network = Autoencoder((1, 8, 8), 4, width=8)
        >>> network(torch.zeros(2, 1, 8, 8)).shape, network.encode(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 4]))
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, width: int = 48) -> None:
        super().__init__()
        channels, height, across = image_shape
        self.padding = (0, -across % 4, 0, -height % 4)
        sites = ((height + 3) // 4) * ((across + 3) // 4)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(width // 2 * sites, latent_dim),
        )
        self.decoder = InversionNetwork((latent_dim,), image_shape, width, blocks=2)

    def encode(self, pictures: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        """Return the pictures' vectors."""
        return self.encoder(F.pad(pictures - 0.5, self.padding))

    def decode(self, latents: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch channels height width"]:
        """Return pictures in (0, 1)."""
        return self.decoder(latents)

    def forward(self, pictures: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the pictures' reconstructions."""
        return self.decode(self.encode(pictures))

    @torch.no_grad()
    def spread(self, pictures: Float[Tensor, "n channels height width"]) -> LatentSpread:
        """Return where the latents of pictures lie; few pictures shrink the covariance towards its diagonal.

        Args:
            pictures: Values in [0, 1].
        """
        latents = torch.cat([self.encode(part) for part in pictures.split(256)]).double()
        n, dim = latents.shape
        covariance = torch.cov(latents.T, correction=0).reshape(dim, dim)
        kept = n / (n + dim)  # chosen here: half where there are as many pictures as dimensions
        covariance = kept * covariance + (1 - kept) * covariance.diagonal().diag()
        floor = 1e-6 * covariance.diagonal().mean().clamp_min(1e-12)
        root = torch.linalg.cholesky(covariance + floor * torch.eye(dim, dtype=covariance.dtype, device=latents.device))
        return LatentSpread(latents.mean(0).float(), root.float())


def train_autoencoder(
    aux: Float[Tensor, "n channels height width"],
    aux_val: Float[Tensor, "m channels height width"],
    latent_dim: int,
    seed: int,
    *,
    width: int = 48,
    ssim_weight: float | int = 0.02,
    lr: float | int = 2e-3,
    batch_size: int = 32,
    views: int = 8,
    flip: bool = True,
    rule: FlatnessRule | None = None,
) -> tuple[Autoencoder, FitRecord]:
    """Train an autoencoder on the attacker's own pictures until its validation loss is flat.

    Args:
        aux: Pictures in [0, 1] to train on.
        aux_val: Pictures in [0, 1] that say when the loss is flat.
        latent_dim: Length of the vector between.
        seed: Of first weights, order and moves.
        width: Channels inside.
        ssim_weight: w in MSE + w (1 - SSIM).
        lr: First learning rate of Adam.
        batch_size: Pictures a step.
        views: Views of each picture: as it is, then moved and mirrored.
        flip: Mirror half of the moved pictures.
        rule: When the loss is flat.

    Returns:
        The network, in evaluation mode and without gradients, and how training went.
    """
    shape = (aux.shape[1], aux.shape[2], aux.shape[3])
    with own_randomness(seed, "autoencoder", aux.device) as generator:
        network = Autoencoder(shape, latent_dim, width).to(aux.device)
        network.decoder.start_at(aux.mean(0))
        itself = InversionTarget(lambda x: x[:, :1, :1, :1], "split", shape)  # what is seen does not matter here
        shift = max(1, min(shape[1:]) // 16)
        batches = iter(ObservedViews(itself, aux, views, shift, flip, True, batch_size, generator))

        def loss() -> Tensor:
            pictures = next(batches)[1]
            return picture_loss(network(pictures), pictures, ssim_weight).mean()

        @torch.no_grad()
        def validate() -> float:
            made = torch.cat([network(part) for part in aux_val.split(256)])
            return float(picture_loss(made, aux_val, ssim_weight).mean())

        record = train_until_flat(network, loss, validate, float(lr), rule or FlatnessRule())
    return network, record
