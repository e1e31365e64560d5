"""What a class-level attack draws pictures from: a sampler trained on the attacker's own pictures, or a given network."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.autoencoder import Autoencoder, LatentSpread, train_autoencoder
from lightning_privacy.attacks.inversion.flatness import FlatnessRule
from lightning_privacy.attacks.inversion.target import FitRecord
from lightning_privacy.errors import InputError

__all__ = ["AutoencoderGenerator", "NetworkGenerator", "PictureGenerator", "load_stylegan", "train_generator"]


@runtime_checkable
class PictureGenerator(Protocol):
    """A source of plausible pictures with a latent to search.

    Args:
        latent_dim: Length of a latent.
    """

    latent_dim: int

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """Draw latents.

        Args:
            n: How many.
            generator: On the CPU.
        """
        ...

    def __call__(self, latents: Float[Tensor, "n dim"]) -> Float[Tensor, "n channels height width"]:
        """Return pictures in [0, 1], differentiable in the latents."""
        ...


class AutoencoderGenerator:
    """Draw whitened latents of an autoencoder from a standard normal and decode them.

    Args:
        autoencoder: Trained and frozen.
        spread: Where the latents of its training pictures lie.
    """

    def __init__(self, autoencoder: Autoencoder, spread: LatentSpread) -> None:
        self.autoencoder, self.spread = autoencoder, spread
        self.latent_dim = len(spread.mean)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """Draw standard normal latents.

        Args:
            n: How many.
            generator: On the CPU.
        """
        return torch.randn(n, self.latent_dim, generator=generator).to(self.spread.mean)

    def __call__(self, latents: Float[Tensor, "n dim"]) -> Float[Tensor, "n channels height width"]:
        """Return pictures in (0, 1)."""
        return self.autoencoder.decode(self.spread.mean + latents @ self.spread.root.T)


class NetworkGenerator:
    """A network of the user's own as a source of pictures.

    Args:
        network: Latents -> pictures; frozen here.
        latent_dim: Length of a latent.
        value_range: Values of the network's pictures that stand for 0 and 1.
        size: Height and width to average the pictures down to; as they are if not given.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        value_range: tuple[float | int, float | int] = (-1, 1),
        size: tuple[int, int] | None = None,
    ) -> None:
        low, high = value_range
        if latent_dim < 1 or not low < high:
            raise InputError(
                f"A generator needs latent_dim of at least 1 and a range that rises, but got {latent_dim=}, {value_range=}."
            )
        self.network = network.eval().requires_grad_(False)
        self.latent_dim, self.size = latent_dim, size
        self.low, self.high = float(low), float(high)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n dim"]:
        """Draw standard normal latents.

        Args:
            n: How many.
            generator: On the CPU.
        """
        place = next(self.network.parameters(), torch.zeros(())).device
        return torch.randn(n, self.latent_dim, generator=generator).to(place)

    def __call__(self, latents: Float[Tensor, "n dim"]) -> Float[Tensor, "n channels height width"]:
        """Return pictures in [0, 1]."""
        pictures = ((self.network(latents) - self.low) / (self.high - self.low)).clamp(0, 1)
        return pictures if self.size is None else F.adaptive_avg_pool2d(pictures, self.size)


def train_generator(
    aux: Float[Tensor, "n channels height width"],
    aux_val: Float[Tensor, "m channels height width"],
    seed: int,
    latent_dim: int = 32,  # chosen here: more dimensions are drawn less plausibly from a normal
    max_steps: int = 3000,  # chosen here
) -> tuple[AutoencoderGenerator, FitRecord]:
    """Train a sampler of pictures on the attacker's own, offline: an autoencoder whose latents are drawn from a normal.

    Its pictures are blurred; it trains on a few hundred pictures without an adversary that could fail to balance.

    Args:
        aux: Pictures in [0, 1] to train on.
        aux_val: Pictures in [0, 1] that say when the loss is flat.
        seed: Of first weights and order.
        latent_dim: Length of a latent.
        max_steps: Optimizer steps at most.
    """
    network, record = train_autoencoder(aux, aux_val, latent_dim, seed, rule=FlatnessRule(max_steps=max_steps))
    return AutoencoderGenerator(network, network.spread(aux)), record


def load_stylegan(
    path: Path | str,
    network: nn.Module,
    latent_dim: int = 512,  # StyleGAN2 and 3
    value_range: tuple[float | int, float | int] = (-1, 1),  # StyleGAN2 and 3
    size: tuple[int, int] | None = None,
) -> NetworkGenerator:
    """Load a generator's weights from a safetensors file into a network that you build yourself.

    Nothing in the file is run. The usual ``.pkl`` of StyleGAN and ``.pt`` files are pickles, which run any code when they
    are read, and a TorchScript archive is a program too: both are refused. Convert once, where you trust the file, with
    ``safetensors.torch.save_file(generator.state_dict(), path)``.

    Args:
        path: A ``.safetensors`` file with every weight of the network and no other.
        network: Latents -> pictures, of the architecture that the weights belong to.
        latent_dim: Length of a latent.
        value_range: Values of the network's pictures that stand for 0 and 1.
        size: Height and width of the attacked model's pictures; as the network draws them if not given.

    Raises:
        InputError: the file is missing, is no safetensors file, or its weights are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(path)
    if not place.is_file():
        raise InputError(f"There is no generator at {place}; give the path of a .safetensors file.")
    with place.open("rb") as file:
        head = file.read(9)
    if place.suffix != ".safetensors" or head[8:] != b"{":
        raise InputError(
            f"{place} is no safetensors file: pickles and TorchScript archives run code when they are read and are refused; "
            "convert the weights where you trust the file, with safetensors.torch.save_file(generator.state_dict(), path)."
        )
    try:
        weights = load_file(place)
    except SafetensorError as error:
        raise InputError(f"The generator at {place} cannot be read ({error}); convert or copy it again.") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"The weights at {place} are not those of {type(network).__name__}: {error}") from error
    return NetworkGenerator(network, latent_dim, value_range, size)
