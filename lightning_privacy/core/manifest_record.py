"""What a defence manifest says, in plain values only, and how it is held against a run."""

import enum
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch

from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.errors import ManifestError

__all__ = [
    "KEY",
    "MANIFEST_VERSION",
    "check_manifest",
    "plain_init_args",
    "plain_value",
    "read_manifest",
    "write_manifest",
]

MANIFEST_VERSION = 1
KEY = "lightning_privacy"
"""Under which the manifest lies in a checkpoint."""


def write_manifest(
    checkpoint: dict[str, Any], defences: Sequence[Defence], reports: Mapping[str, SurgeryReport]
) -> None:
    """Write into a checkpoint which defences made the model.

    Args:
        checkpoint: Lightning's checkpoint; changed in place.
        defences: The run's defences, in order.
        reports: What surgery each of them did, by name.

    Raises:
        ManifestError: an argument of a defence has no plain form.
    """
    from lightning_privacy import __version__

    checkpoint[KEY] = {
        "version": MANIFEST_VERSION,
        "package_version": __version__,
        "order": [d.name for d in defences],
        "defences": {
            d.name: {
                "init_args": plain_init_args(d),
                "layout": _layout(d.name, reports.get(d.name)),
                "slots": [slot.name for slot in sorted(d.slots)],
                "surgery": Slot.SURGERY in d.slots,
                "key_fingerprint": getattr(d, "key_fingerprint", None),
            }
            for d in defences
        },
    }


def read_manifest(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, or None where it has none.

    Raises:
        ManifestError: it is newer than this package, or no manifest.
    """
    manifest = checkpoint.get(KEY)
    if manifest is None:
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("version"), int):
        raise ManifestError(f"The checkpoint's entry `{KEY}` is no defence manifest. It was written by something else.")
    if manifest["version"] > MANIFEST_VERSION:
        raise ManifestError(
            f"The checkpoint's defence manifest has version {manifest['version']} (written by lightning_privacy "
            f"{manifest.get('package_version', 'of an unknown version')}), and this installation reads version "
            f"{MANIFEST_VERSION} at most. Update it: `pip install -U lightning-privacy`."
        )
    if not isinstance(manifest.get("defences"), dict):
        raise ManifestError("The checkpoint's defence manifest names no defences: the file is damaged.")
    return manifest


def check_manifest(
    checkpoint: Mapping[str, Any],
    defences: Sequence[Defence],
    reports: Mapping[str, SurgeryReport] | None = None,
) -> None:
    """Refuse to load a checkpoint into a run with other surgery than the checkpoint's.

    Args:
        checkpoint: Lightning's checkpoint.
        defences: This run's defences; empty for an undefended one.
        reports: What surgery this run did, by name; its layout is compared where both are known.

    Raises:
        ManifestError: the manifest is newer, a defence that did surgery is absent on one side, or its layout differs.
    """
    manifest = read_manifest(checkpoint)
    saved: dict[str, Any] = manifest["defences"] if manifest else {}
    here = {d.name: d for d in defences}
    for name, entry in saved.items():
        if entry.get("surgery") and name not in here:
            raise ManifestError(
                f"The checkpoint was made with the defence `{name}`, which changed the model's layers "
                f"({_words(entry)}), and this run does not use it. Add `{name}` with the checkpoint's settings "
                f"{entry.get('init_args', {})}, or load the model with `lightning_privacy.load_defended`."
            )
    for defence in defences:
        if Slot.SURGERY not in defence.slots:
            continue
        if defence.name not in saved:
            what = "has no defence manifest" if manifest is None else f"was made without `{defence.name}`"
            raise ManifestError(
                f"`{defence.name}` changes the model's layers, but the checkpoint {what}: its weights belong to other "
                "layers. To defend a trained model, load its weights into the module and call `fit` without `ckpt_path`."
            )
        report = (reports or {}).get(defence.name)
        before = saved[defence.name].get("layout")
        if report is not None and before != _layout(defence.name, report):
            raise ManifestError(
                f"`{defence.name}` did other surgery than in the checkpoint: {before} there, "
                f"{_layout(defence.name, report)} here. Use the checkpoint's settings "
                f"{saved[defence.name].get('init_args', {})}."
            )


def plain_init_args(defence: Defence) -> dict[str, Any]:
    """Return a defence's constructor arguments as plain values: functions and classes by import path, paths as text.

    What has no such form (a lambda, a tensor) is refused where a model is rebuilt from it, that is for a defence that
    does surgery or has a key; elsewhere angle brackets say so.

    Args:
        defence: The defence.

    Raises:
        ManifestError: an argument that is needed has no plain form, or one is not kept under its own name.
    """
    out: dict[str, Any] = {}
    try:
        arguments = defence.init_args
    except AttributeError as missing:
        raise ManifestError(
            f"`{defence.name}` does not keep its argument under its own name ({missing}). "
            "Set `self.<argument>` for every constructor argument."
        ) from missing
    needed = Slot.SURGERY in defence.slots or getattr(defence, "key_fingerprint", None) is not None
    for argument, value in arguments.items():
        try:
            out[argument] = plain_value(value)
        except TypeError as no:
            if needed:
                raise ManifestError(
                    f"The argument `{argument}` of `{defence.name}` cannot be written into a checkpoint: {no}. Give a "
                    "plain value, a path, or a function of a module by its import path (`package.module.function`)."
                ) from no
            out[argument] = f"<not kept: {no}>"
    return out


def plain_value(value: Any) -> Any:
    """Return a value as numbers, text, lists, tuples and dictionaries; functions and classes as import paths.

    Args:
        value: Any value.

    Raises:
        TypeError: it has no such form.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, str):
        return str.__str__(value)  # a reference to a secret is a text of a class of its own, and a manifest holds none
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, PurePath | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError("it is a mapping whose keys are not all text")
        return {k: plain_value(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain_value(v) for v in value)
    if isinstance(value, list | tuple):
        parts = [plain_value(v) for v in value]
        return tuple(parts) if isinstance(value, tuple) else parts  # a constructor may insist on either
    if callable(value):
        return _import_path(value)
    raise TypeError(f"it is a {type(value).__name__}")


def _import_path(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not name or "<" in name or getattr(value, "__self__", None) is not None:
        raise TypeError(f"{name or type(value).__name__} has no import path")
    return f"{module}.{name}"


def _layout(name: str, report: SurgeryReport | None) -> dict[str, Any]:
    if report is None:
        return {}
    try:
        return plain_value(report.layout)
    except TypeError as no:
        raise ManifestError(f"The layout that `{name}` reports for its surgery must be plain values: {no}.") from no


def _words(entry: Mapping[str, Any]) -> str:
    layers = entry.get("layout", {}).get("layers")
    if not layers:
        return "see the manifest's layout"
    return f"{len(layers)} of them, such as {layers[0]}"
