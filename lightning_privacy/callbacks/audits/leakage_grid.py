"""A sheet of victims above what the strongest attack made of their update under each condition."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.quality.grids import save_grid

__all__ = ["save_leakage_sheets"]


def save_leakage_sheets(
    trainer: L.Trainer, sheets: Mapping[str, list[Float[Tensor, "n channels height width"]]], epoch: int
) -> list[Path]:
    """Write one sheet a batch size to the run's ``pictures``, and hand it to the loggers; call on rank zero.

    Args:
        trainer: The trainer.
        sheets: Rows by state and batch size: the victims, then reconstructions a condition.
        epoch: Epochs completed, for the file's name.

    Returns:
        The files' paths.
    """
    paths = []
    for place, rows in sheets.items():
        pictures = torch.cat([row.expand(-1, 3, -1, -1) if row.shape[1] == 1 else row[:, :3] for row in rows])
        name = f"leakage-{place.replace('/', '-')}-epoch-{epoch:04d}"
        paths.append(save_grid(trainer, pictures, name, columns=len(rows[0]), key=f"attack/leakage/{place}"))
    return paths
