"""Pictures from pictures with a text-to-image model: SDEdit (arXiv 2108.01073), and inpainting by blended latents."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["sdedit", "text_states"]


def text_states(parts: Any, texts: list[str]) -> Float[Tensor, "n tokens features"]:
    """Return the hidden states of texts, cut or padded to the tokenizer's length.

    Args:
        parts: Text encoder and tokenizer, as `load_components` returns them.
        texts: The texts.
    """
    length = parts.tokenizer.model_max_length
    ids = parts.tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return parts.text_encoder(ids.to(parts.text_encoder.device)).last_hidden_state


def sdedit(
    parts: Any,
    images: Float[Tensor, "batch 3 height width"],
    states: Float[Tensor, "2 tokens features"],
    noise: Float[Tensor, "batch channels h w"],
    strength: float | int,
    steps: int,
    guidance: float | int,
    mask: Float[Tensor, "batch 1 h w"] | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """Add noise to a picture's latents and denoise them towards a text.

    Args:
        parts: UNet, autoencoder and a DDIM scheduler, as `load_components` returns them.
        images: Values in [0, 1].
        states: Of the empty text and of the prompt.
        noise: Standard Gaussian.
        strength: Share of the schedule that is run, above 0 to 1.
        steps: DDIM steps of the whole schedule.
        guidance: Weight of the prompt's direction (arXiv 2207.12598); 1 or less switches it off.
        mask: Where latents are made anew (1) and where they stay (0); None for everywhere.

    Returns:
        Pictures in [0, 1], float32.

    Source:
        SDEdit, arXiv 2108.01073, algorithm 1; masked as in blended latent diffusion, arXiv 2206.02779, algorithm 1.
    """
    unet, vae, scheduler = parts.unet, parts.vae, parts.scheduler
    kind = next(unet.parameters()).dtype
    scale = vae.config.scaling_factor
    begun = vae.encode((images * 2 - 1).to(kind)).latent_dist.mode().float() * scale
    scheduler.set_timesteps(steps, device=images.device)
    times = scheduler.timesteps[steps - max(1, min(steps, round(steps * strength))) :]
    latents = scheduler.add_noise(begun, noise, times[:1].expand(len(images)))
    context = states.repeat_interleave(len(images), 0).to(kind)
    guided = guidance > 1
    for place, t in enumerate(times):
        x = torch.cat([latents, latents]) if guided else latents
        used = context if guided else context[len(images) :]
        predicted = unet(x.to(kind), t, encoder_hidden_states=used).sample.float()
        if guided:
            without, with_text = predicted.chunk(2)
            predicted = without + guidance * (with_text - without)
        latents = scheduler.step(predicted, t, latents).prev_sample
        if mask is not None:
            last = place + 1 == len(times)
            kept = (
                begun if last else scheduler.add_noise(begun, noise, times[place + 1 : place + 2].expand(len(images)))
            )
            latents = mask * latents + (1 - mask) * kept
    pictures = vae.decode((latents / scale).to(kind)).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)
