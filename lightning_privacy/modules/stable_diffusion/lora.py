"""Low-rank adapters (arXiv 2106.09685) on the UNet and the text encoder, through PEFT."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = [
    "adapters_off",
    "add_text_lora",
    "add_unet_lora",
    "is_lora_key",
    "lora_config",
    "lora_parameters",
    "lora_tensors",
    "set_lora_tensors",
]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # diffusers' train_text_to_image_lora.py
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_ALL = (*TEXT_ATTENTION, "fc1", "fc2")  # kohya's: CLIPAttention and CLIPMLP


def _linear_like(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _transformer_layers(unet: nn.Module) -> list[str]:
    """Names of all Linear and 1x1 convolution layers inside the UNet's transformers: what kohya's trainer adapts."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    roots = [name for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
    return [
        f"{root}.{name}" for root in roots for name, m in unet.get_submodule(root).named_modules() if _linear_like(m)
    ]


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, module in model.named_modules() if _linear_like(module)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            endings = sorted({re.sub(r"^.*\.(?=[a-z])", "", name) for name in names})
            raise InputError(
                f"target_modules names {target!r}, but no linear or 1x1 convolution layer of the "
                f"{type(model).__name__} ends so. Its layers end in: {', '.join(endings)}."
            )


def _add(
    model: Any, rank: int, alpha: float | int, targets: Sequence[str], init: bool | str, dropout: float | int
) -> None:
    model.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # a float scales as well as an int
            target_modules=list(targets),
            init_lora_weights=init,  # pyright: ignore[reportArgumentType]
            lora_dropout=dropout,
        )
    )
    for parameter in lora_parameters(model):
        parameter.data = parameter.data.float()  # whatever the default dtype was


def add_unet_lora(
    unet: nn.Module,
    rank: int,
    alpha: float | int,
    targets: Sequence[str] | str = "attention",
    init: bool | str = "gaussian",
    dropout: float | int = 0.0,
) -> None:
    """Insert adapters into the UNet and leave only them trainable, in float32.

    Args:
        unet: Frozen UNet.
        rank: Rank of each adapter.
        alpha: The adapter's output is scaled by ``alpha / rank``.
        targets: ``attention``, ``kohya`` (all linear and 1x1 layers of the transformers), or name endings.
        init: PEFT's ``init_lora_weights``.
        dropout: Dropout on the adapter's input.

    Raises:
        InputError: A target matches no layer.
    """
    words = {"attention": list(ATTENTION), "kohya": _transformer_layers(unet)}
    if isinstance(targets, str):
        if targets not in words:
            raise InputError(f"target_modules is {targets!r}; give `attention`, `kohya` or a list of layer names.")
        targets = words[targets]
    _check_targets(unet, targets)
    _add(unet, rank, alpha, targets, init, dropout)


def add_text_lora(
    text_encoder: nn.Module,
    rank: int,
    alpha: float | int,
    every_layer: bool = False,
    clip_skip: int = 0,
    init: bool | str = "gaussian",
    dropout: float | int = 0.0,
) -> None:
    """Insert adapters into the text encoder's attention, and its MLP if ``every_layer``.

    Layers that ``clip_skip`` skips get none: they would receive no gradient, which DistributedDataParallel refuses.
    """
    kinds = TEXT_ALL if every_layer else TEXT_ATTENTION
    layers = [n for n, _ in text_encoder.named_modules() if re.fullmatch(r".*\blayers\.\d+", n)]
    used = layers[: len(layers) - clip_skip]
    names = [n for n, _ in text_encoder.named_modules() if n.split(".")[-1] in kinds]
    _add(text_encoder, rank, alpha, [n for n in names if any(n.startswith(f"{u}.") for u in used)], init, dropout)


def is_lora_key(name: str) -> bool:
    """Return whether a state-dict key belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the adapter's parameters in a fixed order."""
    return [p for name, p in model.named_parameters() if is_lora_key(name)]


def lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapter as PEFT names it (``...to_q.lora_A.weight``)."""
    return {n.replace(".default.", "."): p.detach() for n, p in model.named_parameters() if is_lora_key(n)}


def lora_config(model: nn.Module) -> dict[str, Any]:
    """Return the adapter's configuration as plain values."""
    configs: Any = model.peft_config
    config: LoraConfig = configs["default"]
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


@contextmanager
def adapters_off(*models: nn.Module | None) -> Iterator[None]:
    """Bypass all adapters of the models; what was on before is on again afterwards, even after an exception.

    PEFT's own switch also flips ``requires_grad`` of every adapter, which must not happen between a training forward
    and its backward; so the bypass flag alone is set.
    """
    layers = [m for model in models if model is not None for m in model.modules() if isinstance(m, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def set_lora_tensors(model: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Copy adapter tensors, named as PEFT names them, into a model; every one must fit and none may be missing.

    Args:
        model: Model with an adapter.
        tensors: The adapter.
        what: Name of the model, for the error.

    Raises:
        InputError: Names or shapes differ.
    """
    own = lora_tensors(model)
    wrong = sorted(set(own) ^ set(tensors)) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise InputError(
            f"The adapter file does not fit the {what}: {len(wrong)} tensors are missing, unknown or of another shape "
            f"(first: {wrong[0]}). Build the module with the rank and target_modules the adapter was trained with."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
