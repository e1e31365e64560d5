"""Pictures from text: DDIM (arXiv 2010.02502) with classifier-free guidance (arXiv 2207.12598)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.core.randomness import seeded_generator

__all__ = [
    "as_size",
    "ddim_pictures",
    "evaluating",
    "picture_generators",
    "picture_grid",
    "show_validation_pictures",
]


def picture_generators(seed: int, count: int, start: int = 0) -> list[torch.Generator]:
    """Return the generators of pictures ``start`` to ``start + count - 1``.

    Handed to a diffusers pipeline as ``generator=``, they give the pictures that the module's ``generate`` gives.

    Args:
        seed: Seed of the whole series.
        count: How many pictures.
        start: Index of the first.
    """
    return [seeded_generator(seed, "picture", i) for i in range(start, start + count)]


def ddim_pictures(
    unet: nn.Module,
    vae: nn.Module,
    scheduler: Any,
    conditional: Float[Tensor, "batch tokens features"],
    unconditional: Float[Tensor, "batch tokens features"],
    latents: Float[Tensor, "batch channels h w"],
    steps: int,
    guidance: float | int,
) -> Float[Tensor, "batch 3 height width"]:
    """Denoise latents and decode them.

    Args:
        unet: Noise predictor.
        vae: Autoencoder.
        scheduler: A diffusers ``DDIMScheduler``; its step table is set here.
        conditional: Text embeddings.
        unconditional: Embeddings of the empty prompt.
        latents: Standard Gaussian noise.
        steps: Denoising steps.
        guidance: Weight of the conditional direction; 1 or less switches guidance off and halves the time.

    Returns:
        Pictures in [0, 1], float32.
    """
    guided = guidance > 1
    context = torch.cat([unconditional, conditional]) if guided else conditional
    scheduler.set_timesteps(steps, device=latents.device)
    for t in scheduler.timesteps:
        x = torch.cat([latents, latents]) if guided else latents
        prediction = unet(x.to(context.dtype), t, encoder_hidden_states=context).sample.to(latents.dtype)
        if guided:
            without, with_text = prediction.chunk(2)
            prediction = without + guidance * (with_text - without)
        latents = scheduler.step(prediction, t, latents).prev_sample
    config: Any = vae.config
    parameter = next(vae.parameters())
    pictures = vae.decode(latents.to(parameter.dtype) / config.scaling_factor).sample  # pyright: ignore[reportCallIssue]
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def picture_grid(pictures: Float[Tensor, "n 3 height width"], columns: int = 4, gap: int = 2) -> Any:
    """Lay pictures out in rows on white, as a PIL image.

    Args:
        pictures: Values in [0, 1].
        columns: Pictures in a row.
        gap: Pixels between pictures.
    """
    from PIL import Image

    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[-2:]
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, picture in enumerate(pictures.detach().float().cpu()):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = picture
    return Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy())


def show_validation_pictures(pictures: Float[Tensor, "n 3 height width"], trainer: Any, name: str) -> Path:
    """Save a grid under ``<default_root_dir>/pictures`` and give it to every logger that takes images.

    Args:
        pictures: Values in [0, 1].
        trainer: The Lightning trainer.
        name: Name in the logs.

    Returns:
        The file.
    """
    grid = picture_grid(pictures)
    file = Path(trainer.default_root_dir) / "pictures" / f"epoch-{trainer.current_epoch:04d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[grid], step=trainer.global_step)
    return file


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside a ``with`` block; every submodule gets its own mode back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def as_size(size: int | Sequence[int] | None, default: int) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    if size is None or isinstance(size, int):
        return (size or default, size or default)
    height, width = size
    return height, width
