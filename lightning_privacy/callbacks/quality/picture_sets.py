"""Real and generated picture sets as features, shared by ranks and kept between measurements."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.audits.untouched import gather_parts, rank
from lightning_privacy.core.ranks import world_size
from lightning_privacy.errors import InputError

__all__ = ["PictureSet", "batch_captions", "batch_pictures", "generated_set", "real_set", "spread"]


@dataclass(frozen=True)
class PictureSet:
    """Features of a set of pictures.

    Args:
        features: By extractor, one row a picture.
        captions: One a picture, where known.
        samples: A few of the pictures, values in [0, 1].
    """

    features: Mapping[str, Tensor]
    captions: tuple[str, ...] = ()
    samples: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


def batch_pictures(batch: Any) -> Float[Tensor, "batch 3 height width"]:
    """Return the pictures of a batch: its ``image``, or the first entry of a tuple.

    Raises:
        InputError: there are none, or they are not RGB in [0, 1].
    """
    found = batch.get("image") if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] != 3:
        raise InputError(
            "ImageQuality needs batches with pictures (batch, 3, height, width) under `image` or as the first entry."
        )
    if float(found.min()) < -1e-3 or float(found.max()) > 1 + 1e-3:
        raise InputError(
            f"ImageQuality needs pictures with values in [0, 1], but the data has {float(found.min()):.2f} to "
            f"{float(found.max()):.2f}; normalise inside the module instead of the dataset."
        )
    return found.float().clamp(0, 1)


def batch_captions(batch: Any) -> tuple[str, ...]:
    """Return the captions of a batch; empty where it has none."""
    found = batch.get("caption", ()) if isinstance(batch, dict) else ()
    return tuple(found)


def spread(items: Sequence[str], n: int) -> list[str]:
    """Return ``n`` items: all of them in turn, or evenly spaced ones where there are more.

    Example:
        >>> spread(["a", "b"], 3), spread(["a", "b", "c", "d"], 2)
        (['a', 'b', 'a'], ['a', 'c'])
    """
    if n >= len(items):
        return [items[i % len(items)] for i in range(n)]
    return [items[i * len(items) // n] for i in range(n)]


def real_set(
    module: L.LightningModule,
    split: Any,
    role: str,
    extractors: Mapping[str, nn.Module],
    cache_dir: Path | None,
) -> PictureSet:
    """Return the features of the real pictures of a role.

    Args:
        module: Decides the device.
        split: A set-up `MembershipSplit`.
        role: One of its roles.
        extractors: By name.
        cache_dir: Folder of features by content of the pictures, shared by runs; None for none.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    captions: list[str] = []
    for number, batch in enumerate(split.loader(role)):
        captions += batch_captions(batch)
        pictures = batch_pictures(batch)
        if number % world_size() == rank():
            parts[number] = {name: _cached(name, net, pictures, module, cache_dir) for name, net in extractors.items()}
    return PictureSet(_joined(gather_parts(parts), role), tuple(captions))


def generated_set(
    module: Any,
    prompts: Sequence[str],
    seed: int,
    batch_size: int,
    extractors: Mapping[str, nn.Module],
    samples: int = 0,
    options: Mapping[str, Any] | None = None,
) -> PictureSet:
    """Return the features of one generated picture a prompt.

    The pictures depend on the seed and the batch size, not on the number of ranks.

    Args:
        module: Has ``generate``.
        prompts: One a picture.
        seed: Of the first batch; each batch has its own.
        batch_size: Pictures a call.
        extractors: By name.
        samples: How many of the first pictures to keep.
        options: Further arguments of ``generate``.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for number, start in enumerate(range(0, len(prompts), batch_size)):
        if number % world_size() != rank():
            continue
        # Picture i of a call depends on (seed, i): equal seeds would repeat the pictures in every call.
        some = list(prompts[start : start + batch_size])
        pictures = module.generate(some, seed=seed + start, **(options or {})).float().clamp(0, 1)
        if not pictures.isfinite().all():
            raise InputError(f"{type(module).__name__}.generate returned pictures that are not finite.")
        parts[number] = {name: _features(net, pictures, module) for name, net in extractors.items()}
        if start < samples:
            parts[number]["samples"] = pictures[: samples - start].cpu()
    rows = gather_parts(parts)
    shown = [row["samples"] for row in rows if "samples" in row]
    features = _joined([{k: v for k, v in row.items() if k != "samples"} for row in rows], "generated")
    return PictureSet(features, tuple(prompts), torch.cat(shown) if shown else None)


def _joined(rows: Sequence[Mapping[str, Tensor]], role: str) -> dict[str, Tensor]:
    if not rows:
        raise InputError(f"There are no pictures in `{role}`; give the role records.")
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _features(net: nn.Module, pictures: Tensor, module: L.LightningModule) -> Tensor:
    # Features in full precision whatever the module trains in: their distances are small differences.
    with torch.autocast(module.device.type, enabled=False):
        return net.to(module.device)(pictures.to(module.device)).flatten(1).double().cpu()


def _cached(name: str, net: nn.Module, pictures: Tensor, module: L.LightningModule, folder: Path | None) -> Tensor:
    if folder is None:
        return _features(net, pictures, module)
    content = hashlib.sha256(pictures.contiguous().numpy().tobytes())
    content.update(str(tuple(pictures.shape)).encode())
    file = folder / f"{name}-{content.hexdigest()[:32]}.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    features = _features(net, pictures, module)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{rank()}.tmp")
    torch.save(features, temporary)
    temporary.replace(file)
    return features
