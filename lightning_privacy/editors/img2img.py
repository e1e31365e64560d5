"""Image-to-image with any Stable Diffusion checkpoint (SDEdit)."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.diffusion import DiffusionEditor, Pictures, Precision
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.editors.noise import NoiseKind, noise_generators, starting_noise
from lightning_privacy.editors.sdedit import sdedit, text_states
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["Img2ImgEditor"]


class Img2ImgEditor(DiffusionEditor):
    """Redraw pictures with a text-to-image model, from a prompt in a vault (SDEdit, arXiv 2108.01073).

    Args:
        key: ``vault:PATH#NAME`` of a prompt, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        pretrained: A Stable Diffusion 1 or 2: ``tiny`` (bundled), a diffusers folder, a ``.safetensors`` file or a hub id.
        pretrained_config: Folder or hub id that describes a single file's architecture.
        strength: Share of the noise schedule that is run backwards, above 0 to 1: how much of the picture is redrawn.
        steps: DDIM steps of the whole schedule, of which the share ``strength`` is run.
        guidance: Weight of the prompt; 1 switches guidance off.
        noise: ``per_image``, a function of key and picture, or ``fixed``, the same for all.
        noise_on: Where noise is drawn: ``cpu``, the same for every device, or ``device``.
        edit_size: Side to which pictures are resized for the edit, and back; null edits them as they are.
        precision: ``float32``, ``float16`` or ``bfloat16``.
        batch_size: Pictures at a time; no part of the key.
        alpha: Share of the edit, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Raises:
        InputError: an argument is out of range; at the first picture, the model cannot be loaded.

    Example:
        >>> Img2ImgEditor("vault:private/lock.safetensors#prompt").settings()["steps"]
        10
    """

    name: ClassVar[str] = "img2img"

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        pretrained: str = "tiny",
        pretrained_config: str | None = None,
        strength: float | int = 0.6,  # chosen here: what the tiny model's probes needed to lock at all, see the card
        steps: int = 10,  # chosen here
        guidance: float | int = 2.0,  # chosen here, for the tiny model
        noise: NoiseKind = "per_image",
        noise_on: Literal["cpu", "device"] = "cpu",
        edit_size: int | None = None,
        precision: Precision = "float32",
        batch_size: int = 16,
        alpha: float | int = 0.5,  # blend ratio of the released script of arXiv 2405.16285
        grid: Grid = "round",
    ) -> None:
        super().__init__(
            key, create, pretrained, None, steps, edit_size, noise, noise_on, precision, batch_size, alpha, grid
        )
        if not 0 < strength <= 1:
            raise InputError(f"{type(self).__name__}: `strength` is {strength}; it lies above 0, at most 1.")
        self.pretrained_config, self.strength, self.guidance = pretrained_config, strength, guidance

    def settings(self) -> dict[str, Any]:
        """Return the public settings."""
        return {**super().settings(), "strength": float(self.strength), "guidance": float(self.guidance)}

    def load(self) -> Any:
        """Return the model's parts."""
        from lightning_privacy.modules.stable_diffusion.components import load_components

        parts = load_components(self.pretrained, self.pretrained_config)
        for part in (parts.unet, parts.vae, parts.text_encoder):
            part.requires_grad_(False).eval()
        return parts

    def place(self, model: Any) -> None:
        """Move the parts."""
        for part in (model.unet, model.vae, model.text_encoder):
            torch.nn.Module.to(part, self.device, getattr(torch, self.precision))  # diffusers warns of its own

    def run(self, model: Any, images: Float[Tensor, "batch 3 height width"], secret: LockSecret) -> Pictures:
        """Return redrawn pictures."""
        factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
        height, width = images.shape[-2:]
        # half a UNet's depth again: its latents are halved between levels
        least = factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
        if height % least or width % least:
            raise InputError(
                f"{type(self).__name__}: pictures of {width} by {height} pixels do not fit {self.pretrained}, whose sides are "
                f"multiples of {least}. Set `edit_size`, to which they are resized and back."
            )
        drawn_on = "cpu" if self.noise_on == "cpu" else self.device
        generators = noise_generators(secret, images, self.noise, drawn_on)
        shape = model.vae.config.latent_channels, height // factor, width // factor
        noise = starting_noise(generators, shape, self.device)
        states = text_states(model, ["", str(secret.prompt)])
        mask = self.mask(secret, (shape[1], shape[2]), len(images))
        return sdedit(model, images, states, noise, self.strength, self.steps, self.guidance, mask)

    def mask(
        self, secret: LockSecret, size: tuple[int, int], count: int
    ) -> Float[Tensor, "batch 1 height width"] | None:
        """Return where latents are redrawn; None for everywhere.

        Args:
            secret: Of the key.
            size: Height and width of the latents.
            count: Pictures.
        """
        return None
