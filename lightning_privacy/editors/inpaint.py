"""An object of the key's prompt in the background, by inpainting."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.diffusion import Precision
from lightning_privacy.editors.img2img import Img2ImgEditor
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.editors.noise import NoiseKind
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["InpaintObjectEditor", "keyed_place"]


def keyed_place(secret: LockSecret, size: tuple[int, int], share: float | int) -> Float[Tensor, "1 1 height width"]:
    """Return a mask with one rectangle in a keyed corner: the object's place in the background.

    Args:
        secret: Of the key.
        size: Height and width.
        share: Side of the rectangle, as a share of the picture's.

    Example:
        >>> keyed_place(LockSecret(seed=1024), (4, 4), 0.5).sum().item()
        4.0
    """
    rows, columns = (max(1, round(side * share)) for side in size)
    bottom, right = (int(n) % 2 for n in secret.numbers("place of the object", 2))
    top, left = bottom * (size[0] - rows), right * (size[1] - columns)
    mask = torch.zeros(1, 1, *size)
    mask[..., top : top + rows, left : left + columns] = 1
    return mask


class InpaintObjectEditor(Img2ImgEditor):
    """Paint what a prompt in a vault says into a part of the background, with any text-to-image Stable Diffusion.

    The rest of the latents is held at the picture's own (arXiv 2206.02779), so no inpainting checkpoint is needed; those with
    9 channels are refused. All of the picture passes through the autoencoder.

    Args:
        key: ``vault:PATH#NAME`` of a prompt, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        mask: A black and white picture file, white where the object goes, of any size; null for a corner that is keyed.
        share: Side of the keyed corner, as a share of the picture's, above 0 to 1.
        pretrained: A Stable Diffusion 1 or 2: ``tiny`` (bundled), a diffusers folder, a ``.safetensors`` file or a hub id.
        pretrained_config: Folder or hub id that describes a single file's architecture.
        strength: Share of the noise schedule that is run backwards, above 0 to 1.
        steps: DDIM steps of the whole schedule.
        guidance: Weight of the prompt; 1 switches guidance off.
        noise: ``per_image`` or ``fixed``.
        noise_on: Where noise is drawn: ``cpu`` or ``device``.
        edit_size: Side to which pictures are resized for the edit, and back; null edits them as they are.
        precision: ``float32``, ``float16`` or ``bfloat16``.
        batch_size: Pictures at a time; no part of the key.
        alpha: Share of the edit, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Raises:
        InputError: an argument is out of range; at the first picture, model or mask cannot be read.
    """

    name: ClassVar[str] = "inpaint_object"

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        mask: str | Path | None = None,
        share: float | int = 0.4,  # chosen here
        pretrained: str = "tiny",
        pretrained_config: str | None = None,
        strength: float | int = 1.0,
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
        if not 0 < share <= 1:
            raise InputError(f"InpaintObjectEditor: `share` is {share}; it lies above 0, at most 1.")
        super().__init__(
            key=key,
            create=create,
            pretrained=pretrained,
            pretrained_config=pretrained_config,
            strength=strength,
            steps=steps,
            guidance=guidance,
            noise=noise,
            noise_on=noise_on,
            edit_size=edit_size,
            precision=precision,
            batch_size=batch_size,
            alpha=alpha,
            grid=grid,
        )
        self.mask_file, self.share = None if mask is None else Path(mask).expanduser(), share

    def settings(self) -> dict[str, Any]:
        """Return the public settings; of a mask in a file, the sha256 of its pixels."""
        place: Any = {"share": float(self.share)} if self.mask_file is None else {"mask": self._file_mark()}
        return {**super().settings(), **place}

    def mask(self, secret: LockSecret, size: tuple[int, int], count: int) -> Float[Tensor, "batch 1 height width"]:
        """Return where the object goes, the same for every picture."""
        if self.mask_file is None:
            found = keyed_place(secret, size, self.share)
        else:
            found = (F.interpolate(self._read(), size, mode="area") >= 0.5).float()
        if not bool(found.any()):
            raise InputError(
                f"InpaintObjectEditor: {self.mask_file} is white nowhere at {size[0]} by {size[1]} latents, so no object "
                "would be painted. Give a mask with a larger white part."
            )
        return found.expand(count, -1, -1, -1).to(self.device)

    def _read(self) -> Float[Tensor, "1 1 height width"]:
        try:
            with Image.open(str(self.mask_file)) as opened:
                pixels = np.asarray(opened.convert("L"), dtype=np.float32) / 255
        except (OSError, SyntaxError, Image.DecompressionBombError) as wrong:
            raise InputError(
                f"InpaintObjectEditor: the mask {self.mask_file} cannot be read ({wrong}). Give a black and white picture."
            ) from wrong
        return torch.from_numpy(pixels.copy())[None, None]

    def _file_mark(self) -> str:
        from lightning_privacy.editors.stored import picture_key

        return picture_key(self._read()[0])
