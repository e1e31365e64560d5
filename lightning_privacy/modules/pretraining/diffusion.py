"""Pre-training of the tiny Stable Diffusion's UNet and text encoder on latents of public pictures."""

from pathlib import Path
from typing import Any

import diffusers
import lightning.pytorch as L
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.modules.pretraining.schedule import warm_cosine
from lightning_privacy.modules.stable_diffusion.tiny_tokenizer import build_tokenizer

# Any: these libraries' constructors are typed for one block and one scheduler class.
hub: Any = diffusers
text: Any = transformers

CAPTIONS = ["a photo of a person", "a photo of a face", "a picture", *(f"a photo of person {n}" for n in range(1, 41))]

__all__ = ["DiffusionPretraining"]


class DiffusionPretraining(L.LightningModule):
    """Train a tiny UNet and CLIP text encoder from scratch and export a whole Stable Diffusion pipeline.

    Pictures are augmented and encoded once, into a bank of latents that training draws from.

    Args:
        autoencoder: Folder of the trained autoencoder (diffusers' format).
        export: Folder that receives the pipeline when training ends, in fp16 safetensors.
        block_out_channels: Channels of the UNet per resolution.
        text_width: Width of the text encoder and of cross-attention.
        bank: Augmented pictures in the bank of latents.
        batch_size: Latents a step.
        caption_dropout: Share of captions replaced by the empty one, for classifier-free guidance.
        lr: Peak learning rate of AdamW.
        schedule_steps: Length of the learning-rate schedule in steps; the trainer's length if not given.
        dropout: Dropout inside the UNet's residual blocks, against over-fitting a few hundred pictures.
    """

    def __init__(
        self,
        autoencoder: Path,
        export: Path,
        block_out_channels: tuple[int, int] = (32, 64),
        text_width: int = 64,
        bank: int = 12_800,
        batch_size: int = 32,
        caption_dropout: float = 0.1,
        lr: float = 1e-3,
        dropout: float = 0.05,
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.export, self.bank, self.batch_size = Path(export), bank, batch_size
        self.caption_dropout, self.lr, self.schedule_steps = caption_dropout, lr, schedule_steps
        self.autoencoder = Path(autoencoder)
        self.vae: Any = None
        self.tokenizer = build_tokenizer(CAPTIONS)
        self.text_encoder = text.CLIPTextModel(
            text.CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=self.tokenizer.model_max_length,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.unet = hub.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=block_out_channels,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=text_width,
            norm_num_groups=16,
            attention_head_dim=8,
            dropout=dropout,
        )
        self.scheduler = hub.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )

    def configure_model(self) -> None:
        """Load the autoencoder, once."""
        if self.vae is None:
            vae = hub.AutoencoderKL.from_pretrained(self.autoencoder, torch_dtype=torch.float32)
            self.vae = vae.eval().requires_grad_(False)

    def on_fit_start(self) -> None:
        """Encode the bank of latents."""
        loader = self.trainer.datamodule.train_dataloader()  # pyright: ignore[reportAttributeAccessIssue]
        latents, tokens = [], []
        with torch.no_grad():
            while sum(map(len, latents)) < self.bank:
                for batch in loader:
                    latents.append(self._latents(batch["image"]))
                    tokens.append(self._tokens(batch["caption"]))
                    if sum(map(len, latents)) >= self.bank:
                        break
        self._bank = torch.cat(latents), torch.cat(tokens)
        self._empty = self._tokens([""])

    def _latents(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 4 h w"]:
        return self.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor

    def _tokens(self, captions: list[str]) -> Int[Tensor, "batch length"]:
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def _loss(self, z: Tensor, tokens: Tensor, t: Tensor, noise: Tensor) -> Float[Tensor, " batch"]:
        noisy = self.scheduler.add_noise(z, noise, t)
        states = self.text_encoder(tokens.to(self.device)).last_hidden_state
        return F.mse_loss(self.unet(noisy, t, states).sample.float(), noise, reduction="none").flatten(1).mean(1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Denoise latents from the bank; the loader's batch only sets the length of an epoch."""
        latents, tokens = self._bank
        index = torch.randint(len(latents), (self.batch_size,))
        z, ids = latents[index], tokens[index].clone()
        ids[torch.rand(len(ids)) < self.caption_dropout] = self._empty
        t = torch.randint(0, 1000, (len(z),), device=z.device)
        loss = self._loss(z, ids, t, torch.randn_like(z)).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(z))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the loss on held-out public pictures at fixed timesteps and noises."""
        z, ids = self._latents(batch["image"]), self._tokens(batch["caption"])
        generator = seeded_generator("pretraining", batch_idx)
        losses = [
            self._loss(z, ids, torch.full((len(z),), t), torch.randn(z.shape, generator=generator).to(z)).mean()
            for t in range(50, 951, 150)
        ]
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, batch_size=len(z))

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule over the whole training."""
        trained = [*self.unet.parameters(), *self.text_encoder.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=1e-2)
        return warm_cosine(optimizer, self.schedule_steps or int(self.trainer.estimated_stepping_batches))

    def on_fit_end(self) -> None:
        """Export the pipeline."""
        if not self.trainer.is_global_zero:
            return
        pipeline = hub.StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.unet.register_to_config(dropout=0.0)
        pipeline.to(torch.float16).save_pretrained(self.export, safe_serialization=True)
