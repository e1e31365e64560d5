"""Small LightningModules for tests: one that knows nothing of us, one with the protocols, one that denoises."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.protocols import Draw

__all__ = ["PlainRegressor", "ProtocolRegressor", "TinyDenoiser"]

STEPS = 100
"""Diffusion steps of `TinyDenoiser`."""


class PlainRegressor(L.LightningModule):
    """Predict the lower half of a picture from the upper: an ordinary module, with nothing of this package in it.

    Args:
        size: Side of the pictures.
        width: Hidden units.
        lr: Learning rate.
        seed: Of the weights.
    """

    def __init__(self, size: int = 8, width: int = 8, lr: float = 0.05, seed: int = 0) -> None:
        super().__init__()
        self.lr = lr
        half = 3 * size * size // 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder, self.decoder = nn.Linear(half, width), nn.Linear(width, half)

    def predict_lower(
        self, batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "batch half"], Float[Tensor, "batch half"]]:
        """Return the prediction and the truth."""
        upper, lower = batch["image"].flatten(2).chunk(2, dim=2)
        return self.decoder(torch.tanh(self.encoder(upper.flatten(1)))), lower.flatten(1)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | dict[str, Any]:
        """Return the mean squared error, as a plain tensor."""
        return F.mse_loss(*self.predict_lower(batch))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the mean squared error."""
        self.log("val/loss", F.mse_loss(*self.predict_lower(batch)), batch_size=len(batch["image"]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum: state to restore, and no division that would blow up rounding."""
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=self.lr, momentum=0.9)


class ProtocolRegressor(PlainRegressor):
    """The same with every protocol: errors per record, no randomness, and an adapter that `reference` switches off.

    Args:
        size: Side of the pictures.
        width: Hidden units.
        lr: Learning rate.
        seed: Of the weights.
    """

    def __init__(self, size: int = 8, width: int = 8, lr: float = 0.05, seed: int = 0) -> None:
        super().__init__(size, width, lr, seed)
        self.adapter, self._adapted = nn.Linear(width, 3 * size * size // 2, bias=False), True
        nn.init.zeros_(self.adapter.weight)

    def predict_lower(
        self, batch: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "batch half"], Float[Tensor, "batch half"]]:
        """Return the prediction, with the adapter where it is on, and the truth."""
        upper, lower = batch["image"].flatten(2).chunk(2, dim=2)
        hidden = torch.tanh(self.encoder(upper.flatten(1)))
        return self.decoder(hidden) + (self.adapter(hidden) if self._adapted else 0), lower.flatten(1)

    def sample_draw(self, batch: Mapping[str, Any], generator: torch.Generator) -> Draw:
        """Return an empty draw: nothing here is random."""
        return Draw()

    def per_sample_error(self, batch: Mapping[str, Any], draw: Draw | None = None) -> Float[Tensor, "batch half"]:
        """Return squared errors."""
        predicted, truth = self.predict_lower(batch)
        return (predicted.float() - truth).square()

    def per_sample_loss(self, batch: Mapping[str, Any], draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return the mean squared error of each record."""
        return self.per_sample_error(batch, draw).mean(1)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the loss beside what it was made of."""
        error = self.per_sample_error(batch)
        return {"loss": error.mean(), "per_sample_error": error, "draw": Draw()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off."""
        self._adapted = False
        try:
            yield
        finally:
            self._adapted = True


class TinyDenoiser(L.LightningModule):
    """A latent-diffusion fine-tune in miniature: a frozen convolutional denoiser, a low-rank adapter, timesteps, noise.

    Timesteps and noise of training are functions of (seed, step, record), so one and two processes draw the same.

    Args:
        width: Channels.
        rank: Of the adapter.
        lr: Learning rate.
        seed: Of the weights and of training's draws.
    """

    def __init__(self, width: int = 8, rank: int = 4, lr: float = 0.05, seed: int = 0) -> None:
        super().__init__()
        self.lr, self.seed, self._adapted = lr, seed, True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inward, self.outward = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
            self.down = nn.Conv2d(width, rank, 3, padding=1, bias=False)
            self.up = nn.Conv2d(rank, width, 1, bias=False)
        self.inward.requires_grad_(False)
        self.outward.requires_grad_(False)
        self.register_buffer("keep", torch.linspace(0.999, 0.02, STEPS), persistent=False)

    def forward(
        self, noisy: Float[Tensor, "batch 3 height width"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Predict the noise."""
        time = (timesteps / STEPS).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        hidden = F.silu(self.inward(torch.cat([noisy, time.to(noisy.dtype)], 1)))
        if self._adapted:
            hidden = hidden + self.up(self.down(hidden))
        return self.outward(hidden)

    def sample_draw(self, batch: Mapping[str, Any], generator: torch.Generator) -> Draw:
        """Draw a timestep and noise for each record from one number of the generator and the record's own number.

        So drawn, a record gets the same noise on whichever rank it lands.
        """
        number = int(torch.randint(0, 2**62, (), generator=generator))
        return self._keyed_draw(batch, number)

    def training_draw(self, batch: Mapping[str, Any]) -> Draw:
        """Draw by (seed, step, record)."""
        return self._keyed_draw(batch, derive_seed(self.seed, self.global_step))

    def _keyed_draw(self, batch: Mapping[str, Any], number: int) -> Draw:
        image = batch["image"]
        sources = [seeded_generator(number, int(record)) for record in batch["record"]]
        timesteps = torch.cat([torch.randint(0, STEPS, (1,), generator=g) for g in sources])
        noise = torch.stack([torch.randn(image.shape[1:], generator=g) for g in sources])
        return Draw(timesteps, noise).to(image.device)

    def per_sample_error(
        self, batch: Mapping[str, Any], draw: Draw | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return squared errors of the predicted noise."""
        drawn = self.training_draw(batch) if draw is None or draw.noise is None or draw.timesteps is None else draw
        noise, timesteps = drawn.noise, drawn.timesteps
        if noise is None or timesteps is None:
            raise ValueError("TinyDenoiser needs noise and timesteps in its draw.")
        keep = self.get_buffer("keep")[timesteps].view(-1, 1, 1, 1)
        noisy = keep.sqrt() * (2 * batch["image"] - 1) + (1 - keep).sqrt() * noise
        return (self(noisy, timesteps).float() - noise).square()

    def per_sample_loss(self, batch: Mapping[str, Any], draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return the mean squared error of each record."""
        return self.per_sample_error(batch, draw).mean((1, 2, 3))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return the loss beside what it was made of."""
        draw = self.training_draw(batch)
        error = self.per_sample_error(batch, draw)
        return {"loss": error.mean(), "per_sample_error": error, "draw": draw}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss on fixed draws."""
        draw = self.sample_draw(batch, seeded_generator(self.seed, "val", batch_idx))
        self.log("val/loss", self.per_sample_error(batch, draw).mean(), batch_size=len(batch["image"]), sync_dist=True)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off."""
        self._adapted = False
        try:
            yield
        finally:
            self._adapted = True

    def generate(self, prompts: list[str], *, seed: int = 0, **options: Any) -> Float[Tensor, "batch 3 height width"]:
        """Return one denoised picture a prompt: enough to count and to look at."""
        noise = torch.stack([torch.randn(3, 8, 8, generator=seeded_generator(seed, i)) for i in range(len(prompts))])
        noise = noise.to(self.device)
        with torch.no_grad():
            predicted = self(noise, torch.full((len(prompts),), STEPS - 1, device=self.device))
        return ((noise - predicted) / 2 + 0.5).clamp(0, 1).float()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum on the adapter."""
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=self.lr, momentum=0.9)
