"""Low-rank fine-tuning of Stable Diffusion as a LightningModule."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.adapter_files import AdapterFiles
from lightning_privacy.modules.stable_diffusion.captions import vary_captions
from lightning_privacy.modules.stable_diffusion.draws import (
    keyed_draw,
    offset_noise,
    sequential_draw,
    stratified_draw,
)
from lightning_privacy.modules.stable_diffusion.encoder import Encoder
from lightning_privacy.modules.stable_diffusion.weighting import diffuse, min_snr_weight, velocity
from lightning_privacy.protocols import Draw

__all__ = ["StableDiffusionLoRA"]

# Hugging Face libraries are imported inside methods: `--help` and `check` must not wait for them.


class StableDiffusionLoRA(AdapterFiles):
    """Fine-tune Stable Diffusion v1 or v2 with low-rank adapters (LoRA, arXiv 2106.09685).

    Batches are dicts with ``image`` (batch, 3, height, width) in [0, 1], ``caption`` (list of str) and, if possible,
    ``record`` (int64, a stable number a record). With ``record``, timesteps and noise are functions of (seed, step,
    record), so that runs on one and several processes, and resumed runs, draw the same.

    Latents are the *mean* of the autoencoder's posterior, times its scaling factor: the posterior is so narrow that a
    sample adds nothing to training, and the mean can be computed once and makes each record's error a function of the
    draw alone. Only adapter weights enter checkpoints.

    Args:
        pretrained: The model to fine-tune: ``tiny`` (shipped, 64-pixel faces, runs on a laptop), a folder in
            diffusers' layout, a ``.safetensors`` file, or a hub id such as ``owner/name``. Pickled ``.ckpt`` files are
            refused.
        pretrained_config: Folder or hub id with the configuration and tokenizer of a single ``.safetensors`` file;
            looked up on the hub if not given.
        rank: Rank of the UNet's adapters; more rank, more capacity and more memorisation.
        alpha: The adapters' output is scaled by ``alpha / rank``; equal to ``rank`` if not given.
        target_modules: Layers of the UNet that get an adapter: ``attention`` (to_q, to_k, to_v, to_out.0), ``kohya``
            (every linear and 1x1 layer of the transformer blocks), or a list of name endings.
        init: Start of the adapters' down matrices: ``gaussian`` (standard deviation 1 / rank) or ``kaiming``
            (uniform); the up matrices start at zero in both.
        dropout: Dropout on the adapters' input while training.
        text_encoder_rank: Rank of adapters on the text encoder; 0 leaves it frozen and its output cached.
        text_encoder_alpha: Alpha of the text encoder's adapters; in proportion to the UNet's if not given.
        text_encoder_lr: Learning rate of the text encoder's adapters.
        clip_skip: Layers left out at the end of the text encoder (diffusers' count; kohya's is one higher).
        min_snr_gamma: Cap of the signal-to-noise ratio in the loss weights (arXiv 2303.09556 takes 5); off if not
            given.
        noise_offset: Standard deviation of a random constant added to the noise of each channel; 0 is off.
        caption_dropout: Probability of training on the empty caption.
        caption_shuffle: Whether to shuffle comma-separated tags, the first excepted.
        frozen_dtype: Storage of the frozen UNet and text encoder. Adapters stay float32, and so does the autoencoder,
            which encodes each picture once.
        gradient_checkpointing: Recompute the UNet's activations in the backward pass: less memory, about a third
            more time.
        compile_unet: Compile the UNet with ``torch.compile``.
        cache_dir: Folder that keeps latents and text embeddings between runs; memory only if not given.
        val_timesteps: Evenly spread timesteps at which each validation record's error is measured, noise fixed.
        pictures_every_n_epochs: Epochs between validation pictures; 0 makes none.
        picture_prompts: Their prompts; the first four captions of the validation data if not given.
        guidance: Classifier-free guidance of pictures.
        sampling_steps: DDIM steps of pictures.
        optimizer: Builds the optimizer from parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer, advanced every step.
        seed: Seed of the adapters' start, timesteps, noise and captions.

    Example:
        >>> StableDiffusionLoRA(pretrained="tiny", rank=8).hparams["rank"]
        8
    """

    # Set by `configure_model`; None before.
    unet: Any
    vae: Any
    text_encoder: Any
    alphas_cumprod: Any

    def __init__(
        self,
        pretrained: str = "tiny",
        pretrained_config: str | None = None,
        rank: int = 32,  # chosen here for the tiny model; diffusers' trainer takes 4, arXiv 2402.11989 takes 64
        alpha: float | int | None = None,  # alpha = rank as in diffusers' train_text_to_image_lora.py
        target_modules: list[str] | Literal["attention", "kohya"] = "attention",
        init: Literal["gaussian", "kaiming"] = "gaussian",  # diffusers' trainer
        dropout: float | int = 0.0,
        text_encoder_rank: int = 0,
        text_encoder_alpha: float | int | None = None,
        text_encoder_lr: float = 1e-5,  # released training scripts of arXiv 2402.11989
        clip_skip: int = 0,
        min_snr_gamma: float | int | None = None,
        noise_offset: float | int = 0.0,
        caption_dropout: float | int = 0.0,
        caption_shuffle: bool = False,
        frozen_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        compile_unet: bool = False,
        cache_dir: str | None = None,
        val_timesteps: int = 8,  # chosen here: eight strata of 125 steps
        pictures_every_n_epochs: int = 0,
        picture_prompts: list[str] | None = None,
        guidance: float | int = 7.5,  # Stable Diffusion's usual; the tiny model wants 2
        sampling_steps: int = 30,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if rank < 1 or text_encoder_rank < 0 or val_timesteps < 1 or clip_skip < 0 or not 0 <= caption_dropout <= 1:
            raise InputError(
                "StableDiffusionLoRA needs rank >= 1, text_encoder_rank >= 0, val_timesteps >= 1, clip_skip >= 0 and "
                f"caption_dropout in [0, 1], but was given {rank}, {text_encoder_rank}, {val_timesteps}, {clip_skip}, "
                f"{caption_dropout}."
            )
        self.pretrained, self.pretrained_config, self.cache_dir = pretrained, pretrained_config, cache_dir
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.target_modules, self.init, self.dropout = target_modules, init, dropout
        self.text_encoder_rank, self.text_encoder_lr, self.clip_skip = text_encoder_rank, text_encoder_lr, clip_skip
        proportional = self.alpha * text_encoder_rank / rank
        self.text_encoder_alpha = proportional if text_encoder_alpha is None else float(text_encoder_alpha)
        self.min_snr_gamma, self.noise_offset = min_snr_gamma, noise_offset
        self.caption_dropout, self.caption_shuffle = caption_dropout, caption_shuffle
        self.frozen_dtype, self.gradient_checkpointing = frozen_dtype, gradient_checkpointing
        self.compile_unet, self.val_timesteps = compile_unet, val_timesteps
        self.pictures_every_n_epochs, self.picture_prompts = pictures_every_n_epochs, picture_prompts
        self.guidance, self.sampling_steps, self.seed = guidance, sampling_steps, seed
        # The default is written as a lambda so that the command line can show and override its arguments, but a
        # lambda does not pickle.
        default = inspect.signature(StableDiffusionLoRA.__init__).parameters["optimizer"].default
        self.optimizer = partial(torch.optim.AdamW, lr=1e-4, weight_decay=1e-2) if optimizer is default else optimizer
        self.lr_scheduler = lr_scheduler
        self.strict_loading = False  # checkpoints hold adapters alone; `load_state_dict` makes its own, stricter check
        self.unet = self.vae = self.text_encoder = None
        self.register_buffer("alphas_cumprod", None, persistent=False)
        self._captions: list[str] = []

    # ---- the model

    def configure_model(self) -> None:
        """Load the weights and insert the adapters, once; adapters start from ``seed`` alone."""
        if self.unet is not None:
            return
        from lightning_privacy.modules.stable_diffusion.components import fingerprint, load_components
        from lightning_privacy.modules.stable_diffusion.lora import add_text_lora, add_unet_lora, is_lora_key

        init = True if self.init == "kaiming" else self.init
        # On the CPU whatever Lightning's device context says: the same seed then starts the same on every device.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            parts = load_components(self.pretrained, self.pretrained_config)
            layers = parts.text_encoder.config.num_hidden_layers
            if self.clip_skip >= layers:
                raise InputError(f"clip_skip is {self.clip_skip}, but the text encoder has only {layers} layers.")
            for model in (parts.unet, parts.vae, parts.text_encoder):
                model.requires_grad_(False)
            self.base_fingerprint = fingerprint(parts.unet, parts.vae, parts.text_encoder, sample=64)
            for model in (parts.unet, parts.text_encoder):
                nn.Module.to(model, dtype=getattr(torch, self.frozen_dtype))  # diffusers' own `to` warns for nothing
            torch.manual_seed(self.seed)
            add_unet_lora(parts.unet, self.rank, self.alpha, self.target_modules, init, self.dropout)
            if self.text_encoder_rank:
                every = self.target_modules == "kohya"
                options = (self.text_encoder_rank, self.text_encoder_alpha, every, self.clip_skip, init, self.dropout)
                add_text_lora(parts.text_encoder, *options)
            alphas = torch.as_tensor(parts.scheduler.alphas_cumprod, dtype=torch.float32).clone()
        self.alphas_cumprod = alphas
        self.tokenizer, self.scheduler = parts.tokenizer, parts.scheduler
        self.unet, self.vae, self.text_encoder = parts.unet, parts.vae, parts.text_encoder
        trains_text = bool(self.text_encoder_rank)
        self.encoder = Encoder(self.vae, self.text_encoder, self.tokenizer, self.clip_skip, trains_text, self.cache_dir)
        self._frozen_keys = {k for k in nn.Module.state_dict(self) if not is_lora_key(k)}
        self._frozen_modules = [m for n, m in self.named_modules() if n and "lora_" not in n]
        self.train(self.training)
        if self.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.compile_unet:
            self.unet.compile()  # in place: names in the state dict stay

    def train(self, mode: bool = True) -> "StableDiffusionLoRA":
        """Set the mode of the adapters and of what defences inserted; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self.__dict__.get("_frozen_modules", ()):
            module.training = False
        return self

    def encode_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """Return latents (posterior mean times scaling factor) of pictures with values in [0, 1], cached."""
        self._ensure_configured()
        return self.encoder.images(images, self.device)

    def encode_text(self, captions: Sequence[str]) -> Float[Tensor, "batch tokens features"]:
        """Return the text encoder's hidden states, cached unless the text encoder is trained."""
        self._ensure_configured()
        return self.encoder.text(captions, self.device)

    # ---- what defences and audits ask for

    def sample_draw(self, batch: Any, generator: torch.Generator) -> Draw:
        """Draw uniform timesteps and standard noise.

        With ``record`` in the batch, one number is taken from the generator, and each record's draw is a function of
        (number, record); otherwise records draw in order.

        Args:
            batch: A batch.
            generator: Where randomness comes from.
        """
        self._ensure_configured()
        images, steps = batch["image"], len(self.alphas_cumprod)
        shape = self.encoder.latent_shape(images)
        if "record" not in batch:
            return sequential_draw(generator, len(images), shape, steps).to(self.device)
        number = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device))
        return keyed_draw(number, batch["record"].tolist(), shape, steps).to(self.device)

    def per_sample_error(self, batch: Any, draw: Draw | None = None) -> Float[Tensor, "batch channels h w"]:
        """Return the raw squared error of the prediction, float32, unweighted.

        Args:
            batch: A batch.
            draw: Timesteps and noise; drawn from torch's own random state if not given.
        """
        if not isinstance(batch, Mapping) or not {"image", "caption"} <= set(batch):
            raise InputError("StableDiffusionLoRA needs batches that are dicts with `image` and `caption`.")
        latents = self.encode_images(batch["image"])
        states = self.encode_text(batch["caption"])
        draw = (self.sample_draw(batch, torch.default_generator) if draw is None else draw).to(self.device)
        if draw.timesteps is None or draw.noise is None:
            raise InputError("A draw for StableDiffusionLoRA needs timesteps and noise; take it from `sample_draw`.")
        alpha_bar = self.alphas_cumprod[draw.timesteps]
        noised = diffuse(latents, draw.noise, alpha_bar).to(self._unet_dtype)
        prediction = self.unet(noised, draw.timesteps, encoder_hidden_states=states.to(self._unet_dtype)).sample
        target = velocity(latents, draw.noise, alpha_bar) if self._predicts_velocity else draw.noise
        return (prediction.float() - target).square()

    def per_sample_loss(self, batch: Any, draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return what training minimises: the mean of each record's error map, min-SNR weighted if that is on.

        Args:
            batch: A batch.
            draw: Timesteps and noise; drawn from torch's own random state if not given.
        """
        draw = self.sample_draw(batch, torch.default_generator) if draw is None else draw
        return self._weighted(self.per_sample_error(batch, draw), draw)

    @contextmanager
    def reference(self) -> Iterator["StableDiffusionLoRA"]:
        """Be the model before fine-tuning inside a ``with`` block; meant for forwards without gradients."""
        from lightning_privacy.modules.stable_diffusion.lora import adapters_off

        self._ensure_configured()
        with adapters_off(self.unet, self.text_encoder):
            yield self

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | int | None = None,
        batch_size: int = 8,
        size: int | tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Make one picture a prompt by DDIM; picture ``i`` depends on ``seed`` and ``i``, not on ``batch_size``.

        There is no safety checker.

        Args:
            prompts: Texts.
            seed: Seed of the series.
            steps: DDIM steps; ``sampling_steps`` if not given.
            guidance: Guidance weight; the module's if not given.
            batch_size: Pictures at once.
            size: Side in pixels, or (height, width); what the model was trained for if not given.

        Returns:
            Values in [0, 1] on the CPU.
        """
        from lightning_privacy.modules.stable_diffusion import sampling

        self._ensure_configured()
        height, width = sampling.as_size(size, self.unet.config.sample_size * self.encoder.factor)
        shape = (1, self.unet.config.in_channels, height // self.encoder.factor, width // self.encoder.factor)
        models = (self.unet, self.vae, self.scheduler)
        options = (steps or self.sampling_steps, self.guidance if guidance is None else guidance)
        pictures = []
        with sampling.evaluating(self):
            empty = self.encode_text([""]).to(self._unet_dtype)
            for start in range(0, len(prompts), batch_size):
                states = self.encode_text(prompts[start : start + batch_size]).to(self._unet_dtype)
                sources = sampling.picture_generators(seed, len(states), start)
                noise = torch.cat([torch.randn(shape, generator=g, device="cpu") for g in sources]).to(self.device)
                pictures.append(sampling.ddim_pictures(*models, states, empty.expand_as(states), noise, *options).cpu())
        return torch.cat(pictures) if pictures else torch.empty(0, 3, height, width)

    @property
    def _unet_dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @property
    def _predicts_velocity(self) -> bool:
        return self.scheduler.config.prediction_type == "v_prediction"

    def _weighted(self, error: Float[Tensor, "batch channels h w"], draw: Draw) -> Float[Tensor, " batch"]:
        loss = error.flatten(1).mean(1)
        if self.min_snr_gamma is None:
            return loss
        alpha_bar = self.alphas_cumprod[draw.timesteps]
        return loss * min_snr_weight(alpha_bar, self.min_snr_gamma, self._predicts_velocity)

    # ---- training

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the loss with the error map and the draw it came from, which defences reuse."""
        records = batch.get("record")
        # Records without identity draw in order, and must not draw alike in every micro-batch and on every rank.
        words = () if records is not None else (batch_idx, self.global_rank)
        generator = seeded_generator(self.seed, "train", self.global_step, *words)
        draw = self.sample_draw(batch, generator)
        if self.noise_offset:
            draw = offset_noise(draw, self.noise_offset, generator, records)
        if self.caption_dropout or self.caption_shuffle:
            names = list(range(len(batch["caption"]))) if records is None else records.tolist()
            options = (self.seed, self.global_step, self.caption_dropout, self.caption_shuffle)
            batch = {**batch, "caption": vary_captions(batch["caption"], names, *options)}
        error = self.per_sample_error(batch, draw)
        loss = self._weighted(error, draw).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(error))
        return {"loss": loss, "per_sample_error": error, "draw": draw}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the raw error on draws that are fixed per record: equal for all epochs, runs and seeds."""
        count, steps = len(batch["image"]), len(self.alphas_cumprod)
        shape = self.encoder.latent_shape(batch["image"])
        names = batch["record"].tolist() if "record" in batch else [batch_idx * 2**20 + i for i in range(count)]
        losses = [
            self.per_sample_error(batch, stratified_draw(names, i, self.val_timesteps, shape, steps)).mean()
            for i in range(self.val_timesteps)
        ]
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, batch_size=count, sync_dist=True)
        if batch_idx == 0:
            self._captions = list(batch["caption"][:4])

    def on_validation_epoch_end(self) -> None:
        """Make validation pictures on rank zero."""
        from lightning_privacy.modules.stable_diffusion.sampling import show_validation_pictures

        every, trainer = self.pictures_every_n_epochs, self.trainer
        if not every or trainer.sanity_checking or (trainer.current_epoch + 1) % every or not trainer.is_global_zero:
            return
        prompts = self.picture_prompts or self._captions
        if prompts:
            show_validation_pictures(self.generate(prompts, seed=self.seed), trainer, "val/pictures")

    def configure_optimizers(self) -> Any:
        """Give the optimizer all trainable parameters, the text encoder's in a group with its own learning rate."""
        text = [p for p in self.text_encoder.parameters() if p.requires_grad]
        known = {id(p) for p in text}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in known]}
        ]
        if text:
            groups.append({"params": text, "lr": self.text_encoder_lr})
        optimizer = self.optimizer(groups)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Refuse a precision that would round the adapters."""
        from lightning_privacy.modules.stable_diffusion.lora import lora_parameters

        rounded = {p.dtype for m in (self.unet, self.text_encoder) for p in lora_parameters(m)} - {torch.float32}
        if rounded:
            raise InputError(
                f"Trainer(precision={self.trainer.precision!r}) stores the adapters in {rounded.pop()}, too coarse for "
                "small updates. Use precision bf16-mixed or 16-mixed, with frozen_dtype to save the same memory."
            )
        # Frozen parts are in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
