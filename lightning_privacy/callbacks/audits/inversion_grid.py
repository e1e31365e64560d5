"""A sheet of victims above what each tap's strongest attack made of them."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.quality.grids import save_grid

__all__ = ["save_reconstructions"]

Sheets = Mapping[str, list[Float[Tensor, "n channels height width"]]]
"""By kind of victims: the victims, then one row of reconstructions a tap, from the client's end to the published one."""


def save_reconstructions(trainer: L.Trainer, sheets: Sheets, epoch: int) -> list[Path]:
    """Write one sheet a kind of victims to the run's ``pictures``, and hand it to the loggers; call on rank zero.

    Args:
        trainer: The trainer.
        sheets: The rows.
        epoch: Epochs completed, for the file's name.

    Returns:
        The files' paths.
    """
    paths = []
    for kind, rows in sheets.items():
        pictures = torch.cat([row.expand(-1, 3, -1, -1) if row.shape[1] == 1 else row for row in rows])
        name = f"reconstructions-{kind}-epoch-{epoch:04d}"
        paths.append(save_grid(trainer, pictures, name, columns=len(rows[0]), key=f"attack/inversion/{kind}"))
    return paths
