"""Pre-training of the tiny latent autoencoder (diffusers' AutoencoderKL, 8 times smaller latents)."""

from pathlib import Path
from typing import Any

import diffusers
import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.metrics.efficientnet_lite0 import EfficientNetLite0
from lightning_privacy.modules.pretraining.schedule import warm_cosine

__all__ = ["AutoencoderPretraining"]


class AutoencoderPretraining(L.LightningModule):
    """Train an ``AutoencoderKL`` on pictures and export it in diffusers' format.

    The loss is L1 + ``perceptual`` * feature distance + ``kl`` * KL; the feature distance compares channel-normalised
    EfficientNet-Lite0 maps, which keeps eyes and mouths where L1 alone blurs them.

    Args:
        export: Folder that receives the autoencoder when training ends.
        block_out_channels: Channels per resolution; four of them give latents 8 times smaller than the picture.
        latent_channels: Channels of the latent.
        size: Side of the pictures in pixels.
        lr: Peak learning rate of AdamW; a cosine takes it to a twentieth.
        perceptual: Weight of the feature distance.
        kl: Weight of the KL term (sum over the latent, mean over pictures).
        schedule_steps: Length of the learning-rate schedule in steps; the trainer's length if not given.
    """

    def __init__(
        self,
        export: Path,
        block_out_channels: tuple[int, int, int, int] = (32, 64, 64, 64),
        latent_channels: int = 4,
        size: int = 64,
        lr: float = 1e-3,
        perceptual: float = 0.03,
        kl: float = 1e-6,
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.export, self.lr, self.perceptual, self.kl = Path(export), lr, perceptual, kl
        self.schedule_steps = schedule_steps
        hub: Any = diffusers  # its constructors are typed for a single block
        self.vae: Any = hub.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=block_out_channels,
            latent_channels=latent_channels,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=size,
        )
        self.features = EfficientNetLite0()

    def feature_distance(self, x: Float[Tensor, "batch 3 h w"], y: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, ""]:
        """Return the mean L1 distance of channel-normalised feature maps, averaged over stages."""
        pairs = zip(self.features.maps(x), self.features.maps(y), strict=True)
        return torch.stack(
            [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).abs().sum(1).mean() for a, b in pairs]
        ).mean()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Reconstruct a batch."""
        x = batch["image"]
        posterior = self.vae.encode(x * 2 - 1).latent_dist
        y = (self.vae.decode(posterior.sample()).sample + 1) / 2
        l1, distance = (x - y).abs().mean(), self.feature_distance(x, y.float())
        self.log_dict({"train/l1": l1, "train/feature_distance": distance}, prog_bar=True, batch_size=len(x))
        return l1 + self.perceptual * distance + self.kl * posterior.kl().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log PSNR and the feature distance of reconstructions of held-out public pictures."""
        x = batch["image"]
        y = ((self.vae.decode(self.vae.encode(x * 2 - 1).latent_dist.mode()).sample + 1) / 2).clamp(0, 1).float()
        psnr = -10 * (x - y).square().flatten(1).mean(1).log10().mean()
        values = {"val/psnr": psnr, "val/feature_distance": self.feature_distance(x, y)}
        self.log_dict(values, prog_bar=True, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule over the whole training."""
        optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.lr, weight_decay=1e-4, betas=(0.9, 0.99))
        return warm_cosine(optimizer, self.schedule_steps or int(self.trainer.estimated_stepping_batches))

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Set the latent scale to unit variance on training pictures, and export."""
        if not self.trainer.is_global_zero:
            return
        loader = self.trainer.datamodule.train_dataloader()  # pyright: ignore[reportAttributeAccessIssue]
        some = [batch["image"].to(self.device) for batch, _ in zip(loader, range(32), strict=False)]
        latents = torch.cat([self.vae.encode(x * 2 - 1).latent_dist.mode() for x in some])
        self.vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        self.vae.half().save_pretrained(self.export / "vae")
