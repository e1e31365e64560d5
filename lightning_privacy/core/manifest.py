"""The defence manifest of a checkpoint: write it, check it, and load a defended model by it."""

import os
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_privacy.core.defence import Defence
from lightning_privacy.core.manifest_record import (
    MANIFEST_VERSION,
    check_manifest,
    plain_value,
    read_manifest,
    write_manifest,
)
from lightning_privacy.errors import ManifestError

M = TypeVar("M", bound=L.LightningModule)

__all__ = ["MANIFEST_VERSION", "check_manifest", "load_defended", "read_manifest", "write_manifest"]


def load_defended(module: M, path: str | os.PathLike[str], vault: Any = None) -> M:
    """Load a checkpoint made with defences into a module instance.

    The module is built by the caller; nothing in the file is ever unpickled. Frozen weights may be absent from the
    file (adapter-only checkpoints): they keep the module's values.

    Args:
        module: A new instance of the class that was trained; changed in place.
        path: The checkpoint.
        vault: Where keys of locking defences are kept; None leaves their secrets random and the model locked.

    Returns:
        The module, on its own device and in its own mode.

    Raises:
        ManifestError: the checkpoint has no or a newer manifest, names an unknown defence, or its weights do not fit.
    """
    checkpoint = _read(path)
    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise ManifestError(
            f"{path} has no defence manifest: it was saved without a defence. Use `load_from_checkpoint`; a weights-only "
            "checkpoint carries the manifest if it is saved during `fit` (by ModelCheckpoint)."
        )
    if is_overridden("configure_model", module):
        module.configure_model()
    defences = _defences(manifest, path)
    for name, defence in defences.items():
        entry = manifest["defences"][name]
        if not entry["surgery"]:
            continue
        layout = defence.surgery(module).layout
        if entry["layout"] != plain_value(layout):
            raise ManifestError(
                f"Repeating the surgery of `{name}` on this {type(module).__name__} gave another layout than the "
                f"checkpoint's: {dict(layout)} here, {entry['layout']} there. Build the module as it was trained."
            )
    module.on_load_checkpoint(checkpoint)
    _load_weights(module, checkpoint["state_dict"], str(path))
    for name, defence in defences.items():
        fingerprint = manifest["defences"][name].get("key_fingerprint")
        if fingerprint is not None and vault is not None:
            _unlock(defence, module, vault, fingerprint)
    return module


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as gone:
        raise ManifestError(f"There is no checkpoint {path}.") from gone
    except Exception as failure:  # torch raises several kinds for files it will not read
        raise ManifestError(
            f"{path} cannot be read as tensors and plain values: {str(failure).splitlines()[0]}. It is no checkpoint, is "
            "damaged, or holds pickled objects (hyper-parameters, say), which `load_defended` never unpickles."
        ) from failure
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ManifestError(f"{path} is no Lightning checkpoint: it has no `state_dict`.")
    return checkpoint


def _defences(manifest: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Defence]:
    from lightning_privacy.core.registry import DEFENCES

    built: dict[str, Defence] = {}
    known = DEFENCES.names()
    for name in manifest.get("order", list(manifest["defences"])):
        entry = manifest["defences"][name]
        if not entry["surgery"] and entry.get("key_fingerprint") is None:
            continue  # it acted in training alone
        if name not in known:
            raise ManifestError(
                f"{path} was made with the defence `{name}`, which is not registered here ({', '.join(known)}). Install "
                f"the package that has it, or call `lightning_privacy.core.registry.register_defence({name!r}, ItsClass)`."
            )
        cls = DEFENCES.load(name)
        try:
            built[name] = cls(**entry["init_args"])
        except TypeError as wrong:
            raise ManifestError(
                f"`{name}` does not accept the checkpoint's settings {entry['init_args']}: {wrong}. "
                f"Install the version that wrote it (lightning_privacy {manifest.get('package_version')})."
            ) from wrong
    return built


def _load_weights(module: nn.Module, saved: dict[str, Any], path: str) -> None:
    here = {**dict(module.named_parameters()), **dict(module.named_buffers()), **module.state_dict()}
    unknown = sorted(set(saved) - set(here))
    if unknown:
        raise ManifestError(
            f"{path} holds weights that this {type(module).__name__} has no place for: {_some(unknown)}. "
            "Build the module with the arguments it was trained with."
        )
    absent = sorted(_needed(module) - set(saved))
    if absent:
        raise ManifestError(
            f"{path} lacks trainable weights of this {type(module).__name__}: {_some(absent)}. They would stay random. "
            "Freeze what was frozen in training, or use a whole checkpoint."
        )
    shapes = [
        f"{k} {tuple(v.shape)} there, {tuple(here[k].shape)} here"
        for k, v in saved.items()
        if isinstance(v, torch.Tensor) and v.shape != here[k].shape
    ]
    if shapes:
        raise ManifestError(
            f"{path} holds weights of another size: {_some(shapes)}. Build the module as it was trained."
        )
    module.load_state_dict(saved, strict=False)


def _needed(module: nn.Module) -> set[str]:
    """Return keys that a checkpoint must hold: trainable weights, and buffers of layers that train (running means)."""
    keys = set(module.state_dict())
    needed = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    for prefix, layer in module.named_modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)):
            needed |= {f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_buffers(recurse=False)}
    return needed & keys


def _unlock(defence: Defence, module: L.LightningModule, vault: Any, fingerprint: str) -> None:
    unlock = getattr(defence, "unlock", None)
    if unlock is None:
        raise ManifestError(
            f"The checkpoint names a key of `{defence.name}`, but {type(defence).__name__} has no `unlock(module, vault, "
            "fingerprint)`. Install the version that wrote the checkpoint."
        )
    unlock(module, vault, fingerprint)


def _some(names: list[str], at_most: int = 5) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
