"""Adapters to and from files: diffusers/PEFT folders, kohya files. Nothing half-written."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.kohya import from_kohya, is_kohya, to_kohya
from lightning_privacy.modules.stable_diffusion.lora import lora_config, lora_tensors, set_lora_tensors

__all__ = ["WEIGHTS", "load_adapter", "save_diffusers", "save_kohya"]

WEIGHTS = "pytorch_lora_weights.safetensors"
UNET, TEXT = "unet", "text_encoder"


def _atomically(file: Path, write: Callable[[Path], Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        write(Path(folder))
        os.replace(Path(folder) / file.name, file)
    return file


def save_diffusers(folder: Path, unet: nn.Module, text_encoder: nn.Module | None) -> Path:
    """Write ``pytorch_lora_weights.safetensors`` for ``StableDiffusionPipeline.load_lora_weights``.

    Args:
        folder: Receives the file.
        unet: UNet with an adapter.
        text_encoder: Text encoder with an adapter, or None.

    Returns:
        The file.
    """
    layers: dict[str, Any] = lora_tensors(unet)
    text: dict[str, Any] = {}
    if text_encoder is not None:
        # Files name text layers below `text_model`; loaders strip it where the installed class has no such level.
        tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in lora_tensors(text_encoder).items()}
        config = lora_config(text_encoder)
        text = {"text_encoder_lora_layers": tensors, "text_encoder_lora_adapter_metadata": config}
    return _atomically(
        Path(folder) / WEIGHTS,
        lambda place: StableDiffusionPipeline.save_lora_weights(
            place,
            unet_lora_layers=layers,
            unet_lora_adapter_metadata=lora_config(unet),
            **text,
        ),
    )


def save_kohya(
    file: Path, unet: nn.Module, text_encoder: nn.Module | None, metadata: dict[str, str], dtype: torch.dtype
) -> Path:
    """Write one kohya file.

    Args:
        file: Ends in ``.safetensors``.
        unet: UNet with an adapter.
        text_encoder: Text encoder with an adapter, or None.
        metadata: The ``ss_*`` entries.
        dtype: Of the tensors.

    Returns:
        The file.
    """
    if file.suffix != ".safetensors":
        raise InputError(f"A kohya adapter is a .safetensors file; {file} is not named so.")
    tensors = to_kohya(unet, lora_config(unet)["lora_alpha"], False, dtype)
    if text_encoder is not None:
        tensors |= to_kohya(text_encoder, lora_config(text_encoder)["lora_alpha"], True, dtype)
    return _atomically(file, lambda place: save_file(tensors, place / file.name, {"format": "pt", **metadata}))


def _rescale(tensors: dict[str, Tensor], alphas: dict[str, float], alpha: float) -> dict[str, Tensor]:
    """Fold a foreign alpha into the up matrices, so that the adapter computes the same with ours."""
    return {
        k: v * (alphas.get(k.rsplit(".", 2)[0], alpha) / alpha) if k.endswith("lora_B.weight") else v
        for k, v in tensors.items()
    }


def _from_diffusers(
    file: dict[str, Tensor], metadata: dict[str, Any], model: nn.Module, prefix: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    mine = {k.removeprefix(f"{prefix}."): v.float() for k, v in file.items() if k.startswith(f"{prefix}.")}
    if prefix == TEXT and not hasattr(model, "text_model"):
        mine = {k.removeprefix("text_model."): v for k, v in mine.items()}
    alphas = {
        # Without metadata, diffusers takes alpha = rank.
        k.rsplit(".", 2)[0]: float(metadata.get(f"{prefix}.lora_alpha", v.shape[0]))
        for k, v in mine.items()
        if k.endswith("lora_A.weight")
    }
    return mine, alphas


def load_adapter(path: Path, unet: nn.Module, text_encoder: nn.Module | None) -> None:
    """Read an adapter of either format into models that have adapters of the same rank at the same places.

    Args:
        path: A folder with ``pytorch_lora_weights.safetensors``, or a file of either format.
        unet: UNet with an adapter.
        text_encoder: Text encoder with an adapter, or None.

    Raises:
        InputError: There is no such file, it is no adapter, or it does not fit.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"There is no adapter at {path}: expected a .safetensors file or a folder with {WEIGHTS}.")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
            metadata = json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except SafetensorError as error:
        raise InputError(f"{file} is no readable safetensors file: {error}") from error
    kohya = is_kohya(tensors)
    text_prefixes = ("lora_te_", "lora_te1_") if kohya else (f"{TEXT}.",)
    if text_encoder is None and any(k.startswith(text_prefixes) for k in tensors):
        raise InputError(f"{file} adapts the text encoder as well: build the module with text_encoder_rank > 0.")
    for model, prefix in ((unet, UNET), (text_encoder, TEXT)):
        if model is not None:
            read = (
                from_kohya(tensors, model, prefix == TEXT)
                if kohya
                else _from_diffusers(tensors, metadata, model, prefix)
            )
            fitted = _rescale(*read, alpha=float(lora_config(model)["lora_alpha"]))
            set_lora_tensors(model, fitted, {UNET: "UNet", TEXT: "text encoder"}[prefix])
