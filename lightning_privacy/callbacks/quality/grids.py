"""Sample grids: one sheet of pictures, saved in the run's folder and shown by loggers that take images."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.run_folder import RunFolder

__all__ = ["picture_grid", "save_grid"]

GAP = 2


def picture_grid(
    pictures: Float[Tensor, "n 3 height width"], columns: int | None = None
) -> Float[Tensor, "3 sheet_height sheet_width"]:
    """Lay pictures out row by row on white.

    Args:
        pictures: Values in [0, 1]; others are clipped.
        columns: Pictures in a row; as square as can be if None.

    Example:
        >>> picture_grid(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([3, 18, 28])
    """
    n, _, height, width = pictures.shape
    columns = min(n, columns or -int(-(n**0.5) // 1))
    rows = -(-n // columns)
    sheet = torch.ones(3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    for i, picture in enumerate(pictures.detach().float().clamp(0, 1).cpu()):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def save_grid(
    trainer: L.Trainer,
    pictures: Float[Tensor, "n 3 height width"],
    name: str,
    columns: int | None = None,
    key: str = "quality/samples",
) -> Path:
    """Write a grid to ``pictures/<name>.png`` of the run's folder and hand it to the loggers; call on rank zero.

    Args:
        trainer: The trainer.
        pictures: Values in [0, 1].
        name: File name without ending.
        columns: Pictures in a row.
        key: What loggers call it.

    Returns:
        The file's path.
    """
    from PIL import Image

    sheet = (picture_grid(pictures, columns) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    image = Image.fromarray(sheet.numpy())
    path = RunFolder(trainer.default_root_dir).pictures / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    for logger in trainer.loggers:
        log_image: Any = getattr(logger, "log_image", None)
        if callable(log_image):
            log_image(key=key, images=[image], step=trainer.global_step)
    return path
