"""The name under which a trained shadow model is kept: a digest of everything that its weights are a function of."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

import lightning_privacy
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.manifest_record import plain_init_args
from lightning_privacy.datamodules.identity import item_digest
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.shadows.canonical import canonical, class_sources, state_digest
from lightning_privacy.shadows.shadow_split import Records, ShadowSplit

__all__ = ["data_parts", "module_parts", "observation_parts", "split_parts"]

# Where data lie and how they are fetched: the records' identities stand in the key instead.
_NO_MATTER = {
    *("root", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "prepare_data_per_node"),
    *("training", "allow_zero_length_dataloader_with_multiple_devices"),
}
PROBED = 4  # records whose batch is part of the key, chosen here: enough to notice another transform
# Whatever of this package can change a trained weight; files that only read weights are left out.
_SOURCES = (
    "core/defence.py",
    "core/randomness.py",
    "core/ranks.py",
    "core/side_learner.py",
    "core/stack.py",
    "core/surgery.py",
    "datamodules/epoch_sampler.py",
    "datamodules/membership_split.py",
    "datamodules/pool.py",
    "datamodules/random_scope.py",
    "datamodules/resumable_loader.py",
    "datamodules/role_stream.py",
    "shadows/build.py",
    "shadows/halves.py",
    "shadows/sequential.py",
    "shadows/shadow_split.py",
    "shadows/stacked_batches.py",
    "shadows/stacked_steps.py",
    "shadows/vectorised.py",
)


_OBSERVING = (
    "attacks/membership/queries.py",
    "attacks/membership/scaled_confidence.py",
    "callbacks/audits/class_scores.py",
    "shadows/observe.py",
)


def _code(names: Sequence[str]) -> str:
    root = Path(inspect.getfile(lightning_privacy)).parent
    return sha256(b"".join((root / name).read_bytes() for name in names)).hexdigest()


@cache
def _package() -> dict[str, str]:
    return {"lightning_privacy": lightning_privacy.__version__, "code": _code(_SOURCES), "torch": torch.__version__}


def data_parts(records: Records, batch_size: int | None, loose: bool) -> dict[str, Any]:
    """Return what all shadows of a pool have in common on the side of the data.

    A batch of the first records, raw and as in two epochs, stands for transforms that no recorded identity covers.

    Args:
        records: The target's records.
        batch_size: Records a training batch; None for the target's.
        loose: See `canonical`.
    """
    split, pool = records.split, records.split.pool
    some = records.indices[:PROBED]
    reader = ShadowSplit(split, {**split.roles}, records.contents, 0).read(some)
    with own_random_state("shadow key"):
        raw = [reader[i] for i in range(len(some))]
        augmented = [reader[EpochIndex(i, epoch)] for epoch in (0, 1) for i in range(len(some))]
        probe = item_digest([pool.options["collate_fn"](items) for items in (raw, augmented)])
    return {
        "batch_size": batch_size or pool.batch_size,
        "shuffle": pool.shuffle,
        "drop_last": pool.drop_last,
        "datamodule": class_sources([type(split.inner), type(pool.dataset)]),
        "datamodule_args": _arguments(split.inner, loose),
        "items": probe,
        **_package(),
    }


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
    return {
        "module": class_sources([type(part) for part in module.modules()]),
        "module_args": _arguments(module, loose),
        "initial": state_digest(module.state_dict()),
        "trains": [name for name, value in module.named_parameters() if value.requires_grad],
        "defences": [_callback(callback, loose) for callback in callbacks],
        "trainer": canonical(trainer, "trainer", loose),
    }


def _callback(callback: L.Callback, loose: bool) -> Any:
    if not isinstance(callback, Defence):
        return canonical(callback, type(callback).__name__, loose)
    arguments = canonical(plain_init_args(callback), callback.name, loose)
    return [callback.name, arguments, class_sources([type(callback)])]


def _arguments(thing: Any, loose: bool) -> Any:
    """Return the constructor's arguments where they were kept, as attributes or hyper-parameters, and plain attributes."""
    hparams = dict(getattr(thing, "hparams", {}))
    attributes = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
    given = {
        name: attributes.get(name, hparams.get(name)) for name in inspect.signature(type(thing).__init__).parameters
    }
    named = {name: value for name, value in {**hparams, **given}.items() if name not in _NO_MATTER}
    # An argument may be kept under another name; only plain attributes, because others say nothing about training.
    plain = {name: value for name, value in attributes.items() if name not in {*named, *_NO_MATTER} and _plain(value)}
    return {
        name: canonical(value, f"{type(thing).__name__}.{name}", loose)
        for name, value in {**plain, **named}.items()
        if value is not None and not isinstance(value, L.LightningDataModule)
    }


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def observation_parts(shadow: str, queries: int, record_ids: Sequence[str]) -> dict[str, Any]:
    """Return what the confidences of one shadow model are a function of.

    Args:
        shadow: Its key.
        queries: Views a record.
        record_ids: Identities, in order.
    """
    return {"shadow": shadow, "queries": queries, "records": list(record_ids), "code": _observing()}


@cache
def _observing() -> str:
    return _code(_OBSERVING)
