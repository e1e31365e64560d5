"""Find and load the parts of a Stable Diffusion v1/v2 model: one clear error where they are missing."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from lightning_privacy.errors import InputError

__all__ = ["Components", "fingerprint", "load_components"]

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
REMEDY = (
    "Give the word `tiny`, a folder written by diffusers' `save_pretrained`, a single .safetensors file, "
    "or a hub id such as owner/name that is reachable or already in the hub cache."
)


@dataclass(frozen=True)
class Components:
    """The parts of a latent diffusion model, in float32 on the CPU.

    Args:
        unet: The noise predictor.
        vae: The autoencoder between pictures and latents.
        text_encoder: The CLIP text model.
        tokenizer: Its tokenizer.
        scheduler: DDIM with the model's own noise schedule.
    """

    # Any: diffusers types a model's config as a plain dict, which it is not.
    unet: Any
    vae: Any
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Any


def fingerprint(*modules: nn.Module, sample: int | None = None) -> str:
    """Return a sha256 over the names, shapes and values of all tensors, and over the configurations.

    Args:
        modules: Models, in order.
        sample: Values read per tensor, evenly spaced; all of them if None. A sample tells any two trained models
            apart in a fraction of the time.
    """
    digest = hashlib.sha256()
    for module in modules:
        config: Any = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Private entries and bookkeeping (library versions, path of origin) do not change what is computed.
        plain = {k: v for k, v in config.items() if not k.startswith("_") and not k.endswith("_version")}
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            if sample is not None:
                flat = flat[:: max(1, flat.numel() // sample)]
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sampler(scheduler: Any) -> Any:
    # Stable Diffusion samples unclipped latents from step 1 on; diffusers' pipeline forces the same two values.
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False, steps_offset=1)


@contextmanager
def _no_bar_for(local: bool) -> Iterator[None]:
    """Hide the bars of a load that takes no time; a download keeps them."""
    shown = local and transformers_logging.is_progress_bar_enabled()
    if shown:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _from_folder_or_hub(source: str) -> Components:
    options: dict[str, Any] = {"use_safetensors": True, "torch_dtype": torch.float32}
    text_options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    with _no_bar_for(local=Path(source).is_dir()):
        return Components(
            unet=UNet2DConditionModel.from_pretrained(source, subfolder="unet", **options),
            vae=AutoencoderKL.from_pretrained(source, subfolder="vae", **options),
            text_encoder=CLIPTextModel.from_pretrained(source, subfolder="text_encoder", **text_options),
            tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
            scheduler=_sampler(DDIMScheduler.from_pretrained(source, subfolder="scheduler")),
        )


def _from_file(file: Path, config: str | None) -> Components:
    options = {} if config is None else {"config": config, "local_files_only": Path(config).is_dir()}
    pipeline: Any = StableDiffusionPipeline.from_single_file(
        str(file), torch_dtype=torch.float32, safety_checker=None, **options
    )
    return Components(
        pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, _sampler(pipeline.scheduler)
    )


def _check_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if not index.is_file() or missing:
        lacks = ", ".join(["model_index.json"] * (not index.is_file()) + [f"{m}/" for m in missing])
        raise InputError(f"{folder} is no Stable Diffusion folder in diffusers' layout: it lacks {lacks}. {REMEDY}")
    if "text_encoder_2" in json.loads(index.read_text()):
        raise InputError(f"{folder} has two text encoders (Stable Diffusion XL); only v1 and v2 models are supported.")


def load_components(pretrained: str, config: str | None = None) -> Components:
    """Load a Stable Diffusion model; weights are read from safetensors alone, never unpickled.

    Args:
        pretrained: ``tiny``, a diffusers folder, a ``.safetensors`` file, or a hub id.
        config: Folder or hub id that describes a single file's architecture and holds its tokenizer; guessed from
            the file and fetched from the hub if None.

    Raises:
        InputError: Nothing usable was found; names what was looked for and the remedy.
    """
    if pretrained == "tiny":
        from lightning_privacy.resources import tiny_stable_diffusion

        return _from_folder_or_hub(str(tiny_stable_diffusion()))
    path = Path(pretrained).expanduser()
    if path.suffix.lower() in {".ckpt", ".pt", ".pth", ".bin"}:
        raise InputError(
            f"{pretrained} is a pickle, which can run any code when opened. Convert it to .safetensors first."
        )
    if path.is_dir():
        _check_folder(path)
    elif not path.is_file() and not HUB_ID.fullmatch(pretrained):
        raise InputError(f"There is no file or folder {pretrained} (current folder: {os.getcwd()}). {REMEDY}")
    try:
        parts = (
            _from_file(path, config)
            if path.is_file()
            else _from_folder_or_hub(str(path) if path.is_dir() else pretrained)
        )
    except (OSError, ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
        what = f"{'the folder' if path.is_dir() else 'the hub model'} {pretrained}"
        if path.is_file():
            architecture = config or "the hub, unless `pretrained_config` names a folder"
            what = f"the file {path} (its architecture and tokenizer come from {architecture})"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"Stable Diffusion weights could not be loaded from {what}: {reason} {REMEDY}") from error
    channels, expected = parts.vae.config.latent_channels, parts.unet.config.in_channels
    if channels != expected:
        raise InputError(
            f"The UNet of {pretrained} takes {expected} channels, but its autoencoder makes {channels}: an inpainting "
            "or depth model cannot be fine-tuned here. Take the text-to-image model of the same family."
        )
    return parts
