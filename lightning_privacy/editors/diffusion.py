"""What editors with a diffusion model share: loading it once, its pictures' size, and batches."""

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.editor import Editor
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.editors.model_files import model_mark
from lightning_privacy.editors.noise import NoiseKind, check_noise
from lightning_privacy.editors.secret_entry import Takes
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["DiffusionEditor", "Precision", "resized"]

Pictures = Float[Tensor, "batch channels height width"]
Precision = Literal["float32", "float16", "bfloat16"]


def resized(images: Pictures, size: tuple[int, int]) -> Float[Tensor, "batch channels rows columns"]:
    """Return pictures of another size, bicubic with anti-aliasing, clipped.

    Args:
        images: Values in [0, 1].
        size: Height and width.
    """
    if images.shape[-2:] == torch.Size(size):
        return images
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


class DiffusionEditor(Editor):
    """Edits in batches with a model that is loaded when the first picture comes.

    A subclass implements `load` and `run`. A picture's edit does not depend on its company but for rounding; the
    grid of bytes hides most of that. The device counts: another kind of GPU rounds otherwise, and so do kernels that are not
    deterministic.

    Args:
        key: ``vault:PATH#NAME`` of a prompt, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        pretrained: The model.
        revision: Of a hub id.
        steps: Denoising steps.
        edit_size: Side to which pictures are resized for the edit, and back; None edits them as they are.
        noise: ``fixed`` or ``per_image``.
        noise_on: Where noise is drawn: ``cpu``, the same for every device, or ``device``.
        precision: Of the model: ``float32``, ``float16`` or ``bfloat16``.
        batch_size: Pictures at a time; no part of the key.
        alpha: Share of the edit, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``.
    """

    takes: ClassVar[Takes] = "prompt"

    def __init__(
        self,
        key: SecretRef | str | None,
        create: bool,
        pretrained: str,
        revision: str | None,
        steps: int,
        edit_size: int | None,
        noise: NoiseKind,
        noise_on: Literal["cpu", "device"],
        precision: Precision,
        batch_size: int,
        alpha: float | int,
        grid: Grid,
    ) -> None:
        who = type(self).__name__
        super().__init__(key, create, alpha, grid)
        check_noise(noise, who)
        if steps < 1 or batch_size < 1 or (edit_size is not None and edit_size < 8):
            raise InputError(
                f"{who}: `steps` is {steps}, `batch_size` {batch_size} and `edit_size` {edit_size}; they must be at least 1, "
                "1 and 8."
            )
        if noise_on not in ("cpu", "device") or precision not in get_args(Precision):
            raise InputError(
                f"{who}: `noise_on` is {noise_on!r} and `precision` {precision!r}; give `cpu` or `device`, and one of "
                f"{', '.join(get_args(Precision))}."
            )
        self.pretrained, self.revision, self.steps, self.edit_size = pretrained, revision, steps, edit_size
        self.noise: NoiseKind = noise
        self.noise_on, self.precision, self.batch_size = noise_on, precision, batch_size

    def settings(self) -> dict[str, Any]:
        """Return the settings that all diffusion editors have."""
        return {
            "model": model_mark(self.pretrained, self.revision),
            "steps": self.steps,
            "edit_size": self.edit_size,
            "noise": self.noise,
            "noise_on": self.noise_on,
            "precision": self.precision,
        }

    def load(self) -> Any:
        """Return the model, on the CPU in single precision or in the editor's."""
        raise NotImplementedError

    def place(self, model: Any) -> None:
        """Move the model to the editor's device and precision."""
        raise NotImplementedError

    def run(self, model: Any, images: Float[Tensor, "batch 3 height width"], secret: LockSecret) -> Pictures:
        """Return a batch's edits, of the same size.

        Args:
            model: What `load` returned.
            images: Values in [0, 1], at `edit_size`.
            secret: Prompt and seed.
        """
        raise NotImplementedError

    def apply(self, images: Pictures, secret: LockSecret) -> Pictures:
        """Return the edits; pictures of one channel are edited as grey ones."""
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise InputError(f"{type(self).__name__} edits pictures of 1 or 3 channels, not of {channels}.")
        size = (height, width) if self.edit_size is None else (self.edit_size, self.edit_size)
        colour = resized(images, size).expand(-1, 3, -1, -1)
        edited = torch.cat([self.run(self.model(), part, secret).float() for part in colour.split(self.batch_size)])
        back = resized(edited, (height, width))
        return back.mean(1, keepdim=True) if channels == 1 else back

    def model(self) -> Any:
        """Return the loaded model on the editor's device."""
        if "model" not in self._shared:
            self._shared["model"] = self.load()
            self.place(self._shared["model"])
        return self._shared["model"]

    def to(self, device: torch.device | str) -> "DiffusionEditor":
        """Edit on another device from now on."""
        super().to(device)
        if "model" in self._shared:
            self.place(self._shared["model"])
        return self

    def release(self) -> None:
        """Let go of the model."""
        self._shared.pop("model", None)
