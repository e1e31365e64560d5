"""The name under which a trained shadow model is kept: a digest of everything that its weights are a function of."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import lightning
import lightning.pytorch as L
import numpy as np
import torch

import lightning_privacy
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.import_path import import_object
from lightning_privacy.shadows.canonical import canonical
from lightning_privacy.shadows.content import batches_digest, reading_settings, records_digest
from lightning_privacy.shadows.shadow_split import Records, ShadowSplit
from lightning_privacy.shadows.sources import folder_digest, is_standard, source_digest

__all__ = ["build_parts", "data_parts", "module_parts", "observation_parts", "split_parts"]

# Where a trainer writes and what it shows; which device of a kind it is.
_NO_MATTER = {
    *("default_root_dir", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "devices"),
}


@cache
def _package() -> dict[str, str]:
    """Return the versions under which training runs; any change of this package counts, see `folder_digest`."""
    return {
        "lightning_privacy": lightning_privacy.__version__,
        "code": folder_digest(Path(inspect.getfile(lightning_privacy)).parent),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
    }


def data_parts(records: Records, batch_size: int | None, loose: bool) -> dict[str, Any]:
    """Return what all shadows of a pool have in common on the side of the data, and the versions of all code.

    Args:
        records: The target's records.
        batch_size: Records a training batch; None for the target's.
        loose: See `canonical`.

    Raises:
        InputError: something has no canonical form, see `canonical`.
    """
    pool = records.split.pool
    return {
        "batch_size": batch_size or pool.batch_size,
        "shuffle": pool.shuffle,
        "drop_last": pool.drop_last,
        "records": records_digest(records),
        "batches": batches_digest(records),
        "reading": reading_settings(records, loose),
        "collate": canonical(pool.options["collate_fn"], "collate_fn", loose),
        **_package(),
    }


def build_parts(build: Callable[..., Any]) -> dict[str, Any]:
    """Return which code builds a module; what it captured comes out in the module, which has parts of its own.

    Args:
        build: The caller's function.
    """
    while isinstance(build, partial):
        build = build.func
    function = getattr(build, "__func__", build)
    code = function if isinstance(function, FunctionType | type) else type(function)
    return {"build": None if is_standard(code.__module__) else source_digest(code)}


def split_parts(split: ShadowSplit) -> dict[str, Any]:
    """Return the records that one shadow is trained on, chooses by and defends with, and its order."""
    ids = {
        role: sorted(split.record_ids[index] for index in split.roles[role])
        for role in ("member", "aux_member", "aux_nonmember", "val")
    }
    return {"in": ids.pop("member"), **ids, "order_seed": split.order_seed}


def module_parts(
    module: L.LightningModule, callbacks: Sequence[L.Callback], trainer: Mapping[str, Any], loose: bool
) -> dict[str, Any]:
    """Return what one shadow is trained with.

    Args:
        module: Untrained, with its layers.
        callbacks: Its defences and other callbacks.
        trainer: Arguments of its trainer.
        loose: See `canonical`.

    Raises:
        InputError: something has no canonical form, see `canonical`.
    """
    form = canonical(module, type(module).__name__, loose)
    plain = {name: value for name, value in trainer.items() if name not in _NO_MATTER}
    return {
        "module": form["sources"],
        "structure": form["structure"],
        "initial": form["state"],
        "trains": [name for name, value in module.named_parameters() if value.requires_grad],
        "defences": [_callback(callback, loose) for callback in callbacks],
        "trainer": canonical(plain, "trainer", loose),
    }


def _callback(callback: L.Callback, loose: bool) -> Any:
    name = getattr(callback, "name", "") or type(callback).__name__
    form = canonical(callback, name, loose)
    if not isinstance(callback, Defence):
        return [name, form]
    # A path says which function, and not what is in it.
    named = {key: value for key, value in vars(callback).items() if key.endswith("_fn") and isinstance(value, str)}
    functions = {key: canonical(import_object(value), f"{name}.{key}", loose) for key, value in named.items()}
    return [name, form, functions]


def observation_parts(shadow: str, queries: int, record_ids: Sequence[str]) -> dict[str, Any]:
    """Return what the confidences of one shadow model are a function of; its key holds the code too.

    Args:
        shadow: Its key.
        queries: Views a record.
        record_ids: Identities, in order.
    """
    return {"shadow": shadow, "queries": queries, "records": list(record_ids)}
