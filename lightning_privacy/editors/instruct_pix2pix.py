"""InstructPix2Pix, the editor of the released script."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.diffusion import DiffusionEditor, Pictures, Precision
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.editors.model_files import refuse_pickle
from lightning_privacy.editors.noise import NoiseKind, noise_generators
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["InstructPix2PixEditor"]


class InstructPix2PixEditor(DiffusionEditor):
    """Edit pictures by an instruction in a vault (arXiv 2211.09800), with the settings of the script released with ModelLock.

    15 passes through a UNet of Stable Diffusion's size a picture. Only its settings were published, not its prompts for
    training (arXiv 2405.16285); the released checkpoint's prompt is "with oil pastel".

    Args:
        key: ``vault:PATH#NAME`` of the instruction, or ``env:NAME``; its seed is 1024 where the vault holds none.
        create: Make vault and entry where they are absent, when a run begins.
        pretrained: Hub id, folder in diffusers' layout, or a ``.safetensors`` file.
        pretrained_config: Folder or hub id that describes a single file's architecture.
        revision: Of the hub id.
        steps: Denoising steps.
        image_guidance: Weight of the picture.
        text_guidance: Weight of the instruction.
        noise: ``per_image``, a function of key and picture, or ``fixed`` as in the script: the seed anew for every picture.
        noise_on: ``cpu``, the same for every device, or ``device`` as in the script.
        edit_size: Side to which pictures are resized for the edit, and back; null edits them as they are.
        precision: ``float16`` as in the script, ``bfloat16``, or ``float32`` where the CPU edits.
        batch_size: Pictures at a time; no part of the key.
        alpha: Share of the edit, above 0 to 1.
        grid: ``round``, ``none``, or ``truncate`` as in the script: whether results are multiples of 1/255.

    Raises:
        InputError: an argument is out of range; at the first picture, the model cannot be loaded.

    Example:
        >>> InstructPix2PixEditor.released(key="env:PROMPT").settings()["text_guidance"]
        4.5
    """

    name: ClassVar[str] = "instruct_pix2pix"

    # every number but `noise`, `noise_on` and `grid`: released evaluation script of arXiv 2405.16285
    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        pretrained: str = "timbrooks/instruct-pix2pix",
        pretrained_config: str | None = None,
        revision: str | None = None,
        steps: int = 5,
        image_guidance: float | int = 1.5,
        text_guidance: float | int = 4.5,
        noise: NoiseKind = "per_image",
        noise_on: Literal["cpu", "device"] = "cpu",
        edit_size: int | None = 256,
        precision: Precision = "float16",
        batch_size: int = 8,
        alpha: float | int = 0.5,
        grid: Grid = "round",
    ) -> None:
        super().__init__(
            key, create, pretrained, revision, steps, edit_size, noise, noise_on, precision, batch_size, alpha, grid
        )
        self.pretrained_config = pretrained_config
        self.image_guidance, self.text_guidance = image_guidance, text_guidance

    @classmethod
    def released(cls, **overrides: Any) -> "InstructPix2PixEditor":
        """Return the editor of the released script: one noise for all pictures, drawn on the device; bytes cut off."""
        return cls(**{"noise": "fixed", "noise_on": "device", "grid": "truncate", **overrides})

    def settings(self) -> dict[str, Any]:
        """Return the public settings."""
        guidance = {"image_guidance": float(self.image_guidance), "text_guidance": float(self.text_guidance)}
        return {**super().settings(), **guidance}

    def load(self) -> Any:
        """Return diffusers' pipeline."""
        from diffusers.loaders.single_file_utils import SingleFileComponentError
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
            StableDiffusionInstructPix2PixPipeline,
        )

        refuse_pickle(self.pretrained)
        options: dict[str, Any] = {"dtype": getattr(torch, self.precision), "safety_checker": None}
        path = Path(self.pretrained).expanduser()
        try:
            if path.is_file():
                if self.pretrained_config is not None:
                    local = Path(self.pretrained_config).is_dir()
                    options |= {"config": self.pretrained_config, "local_files_only": local}
                pipeline: Any = StableDiffusionInstructPix2PixPipeline.from_single_file(str(path), **options)
            else:
                where = str(path) if path.is_dir() else self.pretrained
                options |= {"use_safetensors": True, "revision": self.revision, "requires_safety_checker": False}
                pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(where, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"InstructPix2Pix could not be loaded from {self.pretrained}: {reason} Give a hub id that is reachable or in "
                "the hub cache, a folder written by `save_pretrained`, or a .safetensors file."
            ) from error
        channels, expected = 2 * pipeline.vae.config.latent_channels, pipeline.unet.config.in_channels
        if channels != expected:
            raise InputError(
                f"The UNet of {self.pretrained} takes {expected} channels and InstructPix2Pix has {channels}: this is another "
                "kind of model. For text-to-image models use `Img2ImgEditor`."
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def place(self, model: Any) -> None:
        """Move the pipeline."""
        model.to(self.device)

    def run(self, model: Any, images: Float[Tensor, "batch 3 height width"], secret: LockSecret) -> Pictures:
        """Return edited pictures."""
        drawn_on = "cpu" if self.noise_on == "cpu" else self.device
        return model(
            prompt=[str(secret.prompt)] * len(images),
            image=images,
            num_inference_steps=self.steps,
            image_guidance_scale=self.image_guidance,
            guidance_scale=self.text_guidance,
            generator=noise_generators(secret, images, self.noise, drawn_on),
            output_type="pt",
        ).images
