"""Names of adapter tensors in kohya's format, which A1111, ComfyUI and sd-scripts read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.lora import lora_tensors

__all__ = ["from_kohya", "is_kohya", "kohya_metadata", "to_kohya"]

UNET, TEXT = "lora_unet_", "lora_te_"
DIRECTIONS = {"lora_A": "lora_down", "lora_B": "lora_up"}


def is_kohya(names: Mapping[str, Any]) -> bool:
    """Return whether tensor names are kohya's."""
    return any(name.startswith((UNET, TEXT, "lora_te1_")) for name in names)


def _prefixed(layer: str, text: bool) -> str:
    # kohya names text layers below `text_model`, a level that newer transformers versions no longer have.
    path = f"text_model.{layer.removeprefix('text_model.')}" if text else layer
    return (TEXT if text else UNET) + path.replace(".", "_")


def to_kohya(model: nn.Module, alpha: float | int, text: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's adapter under kohya's names, with one ``alpha`` a layer.

    Args:
        model: Model with an adapter.
        alpha: The adapter's alpha.
        text: Whether the model is the text encoder.
        dtype: Of the tensors.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in lora_tensors(model).items():
        layer, direction = name.removesuffix(".weight").rsplit(".", 1)
        stem = _prefixed(layer, text)
        out[f"{stem}.{DIRECTIONS[direction]}.weight"] = tensor.to("cpu", dtype).contiguous().clone()
        out[f"{stem}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    return out


def from_kohya(file: Mapping[str, Tensor], model: nn.Module, text: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a file's tensors of one model under PEFT's names, and each layer's alpha.

    Underscores stand for both dots and underscores in kohya's names, so they are resolved through the model's layers.

    Args:
        file: All tensors of the file.
        model: Model with an adapter.
        text: Whether the model is the text encoder.

    Raises:
        InputError: The file has tensors of this model that the model has no place for.
    """
    prefixes = (TEXT, "lora_te1_") if text else (UNET,)
    mine = {k: v for k, v in file.items() if k.startswith(prefixes)}
    layers = {_prefixed(n.rsplit(".", 2)[0], text): n.rsplit(".", 2)[0] for n in lora_tensors(model)}
    back = {new: old for old, new in DIRECTIONS.items()}
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in mine.items():
        stem, kind = name.replace("lora_te1_", TEXT, 1).split(".", 1)
        if stem not in layers:
            raise InputError(f"The adapter file has {name}, but the module has no adapter there; check target_modules.")
        if kind == "alpha":
            alphas[layers[stem]] = float(tensor)
        elif kind.removesuffix(".weight") in back:
            tensors[f"{layers[stem]}.{back[kind.removesuffix('.weight')]}.weight"] = tensor.float()
        else:
            raise InputError(
                f"The adapter file has {name}, which is no plain LoRA tensor (DoRA, LoHa and LoKr differ)."
            )
    return tensors, alphas


def kohya_metadata(hparams: Mapping[str, Any], rank: int, alpha: float | int) -> dict[str, str]:
    """Return the ``ss_*`` entries that kohya's tools show; file names only, never a path.

    Args:
        hparams: The module's arguments.
        rank: Rank of the UNet adapter.
        alpha: Its alpha.
    """
    entries = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(alpha),
        "ss_network_dropout": hparams["dropout"],
        "ss_base_model_version": "sd_v1",
        "ss_v2": False,
        "ss_sd_model_name": str(hparams["pretrained"]).rstrip("/").split("/")[-1],
        "ss_seed": hparams["seed"],
        "ss_clip_skip": hparams["clip_skip"] + 1,  # kohya counts the last layer as 1
        "ss_min_snr_gamma": hparams["min_snr_gamma"],
        "ss_noise_offset": hparams["noise_offset"],
        "ss_caption_dropout_rate": hparams["caption_dropout"],
        "ss_shuffle_caption": hparams["caption_shuffle"],
        "ss_keep_tokens": 1 if hparams["caption_shuffle"] else 0,
        "ss_text_encoder_lr": hparams["text_encoder_lr"] if hparams["text_encoder_rank"] else None,
        "ss_training_comment": "trained with lightning_privacy",
    }
    return {key: str(value) for key, value in entries.items()}
