"""Stable Diffusion in the layout of its first release: one file, whose names count blocks from the input to the output."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

__all__ = ["write_single_file"]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(name: str, layers: int, attends: Sequence[bool]) -> str:
    for old, new in _ENDS.items():
        if name.startswith(f"{old}."):
            return name.replace(old, new, 1)
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        at = block * (layers + 1) + layer + (way == "down")
        place = f"{'input' if way == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}"
        return f"{place}.{_inner(rest) if kind == 'resnets' else rest}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        block = int(found[1])
        return f"output_blocks.{block * (layers + 1) + layers}.{1 + attends[block]}.conv.{found[2]}"
    if found := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", name):
        return f"middle_block.{2 * int(found[1])}.{_inner(found[2])}"
    return re.sub(r"mid_block\.attentions\.0\.", "middle_block.1.", name)


def _inner(rest: str) -> str:
    part, _, last = rest.rpartition(".")
    return f"{_RESNET[part]}.{last}"


def _vae_entry(name: str, value: Tensor, blocks: int) -> tuple[str, Tensor]:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        for old, new in _ATTENTION.items():
            name = name.replace(f"attn_1.{old}.", f"attn_1.{new}.")
        if value.ndim == 2:
            value = value[..., None, None]  # attention was made of convolutions
    return name, value


def write_single_file(folder: str | Path, file: Path) -> Path:
    """Write the weights of a diffusers folder as one file in the original layout, which diffusers reads and does not write.

    Args:
        folder: Stable Diffusion 1, or InstructPix2Pix, in diffusers' layout.
        file: ``.safetensors``, which is written.

    Source:
        Names of the configuration and modules of Rombach et al., arXiv 2112.10752, released code.
    """
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    entries = {
        f"model.diffusion_model.{_unet_name(name, unet.config.layers_per_block, attends)}": value
        for name, value in unet.state_dict().items()
    }
    for name, value in vae.state_dict().items():
        new, kept = _vae_entry(name, value, len(vae.config.block_out_channels))
        entries[f"first_stage_model.{new}"] = kept
    for name, value in text.state_dict().items():
        entries[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.float().contiguous() for name, value in entries.items()}, file, {"format": "pt"})
    return file
