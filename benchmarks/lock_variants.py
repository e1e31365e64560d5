"""The locks that `lock_faces.py` compares: a transform, a network, and a mode of ModelLock with its negatives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lock_edits import KeptImg2Img

from lightning_privacy.callbacks.model_lock.callback import ModelLock
from lightning_privacy.callbacks.model_lock.negatives import negatives_of
from lightning_privacy.editors.blocks import NegativePositiveEditor, PixelShuffleEditor
from lightning_privacy.editors.editor import Editor

EVERY = ["raw", "wrong_key", "residue"]
WHOLE = 64  # pixels of a side: the whole picture is one block


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        transform: How pictures are edited, for the legend.
        editor: Builds the editor for a private folder.
        network: Of the classifier.
        lock: Arguments of ModelLock; None for a model without a lock.
        decoys: Wrong keys of each kind that are trained against.
    """

    transform: str
    editor: Callable[[Path], Editor]
    network: str = "small_cnn"
    lock: Mapping[str, Any] | None = field(default_factory=dict)
    decoys: int = 0

    def defence(self) -> list[ModelLock]:
        """Return the lock, made anew."""
        return [] if self.lock is None else [ModelLock(**self.lock)]


def _vault(private: Path, name: str) -> dict[str, Any]:
    return {"key": f"vault:{private / 'lock.safetensors'}#{name}", "create": True}


def _diffusion(lock: Mapping[str, Any] | None, decoys: int = 0, **settings: Any) -> Variant:
    given = {"strength": 0.6, "alpha": 0.8, **settings}
    told = ", ".join(f"{k} {v}" for k, v in given.items())

    def build(private: Path) -> Editor:
        return KeptImg2Img(private / "guesses", **_vault(private, "prompt"), pretrained="tiny", **given)

    return Variant(f"diffusion, {told}", build, lock=lock, decoys=decoys)


def _pixels(lock: Mapping[str, Any] | None, block: int, network: str = "small_cnn", negative: bool = False) -> Variant:
    kind = NegativePositiveEditor if negative else PixelShuffleEditor
    told = f"{'negatives' if negative else 'order'} in blocks of {block}, {network}"
    against = [] if lock is None else negatives_of(lock["mode"], lock.get("negatives")) or []
    decoys = 8 if "wrong_key" in against else 0  # they cost nothing to make, and one alone would be learned by heart
    return Variant(told, lambda private: kind(**_vault(private, "pixels"), block=block), network, lock, decoys)


def _mode(mode: str, *negatives: str, **more: Any) -> dict[str, Any]:
    chosen = {"negatives": list(negatives)} if negatives else {}
    return {"mode": mode, "rho": 0.0 if mode == "edited_only" else 0.5, **chosen, **more}


_ALONE, _WRONG, _FLAT = _mode("edited_only"), _mode("wrong_label"), _mode("flat")
_WRONG_KEYS, _WRONG_ALL = _mode("wrong_label", "raw", "wrong_key"), _mode("wrong_label", *EVERY)
_FLAT_KEYS, _FLAT_ALL, _CONTRASTIVE = _mode("flat", "raw", "wrong_key"), _mode("flat", *EVERY), _mode("contrastive")

VARIANTS: dict[str, Variant] = {
    # without a lock: the network as it is, and the one for whole blocks
    "unlocked": _diffusion(None),
    "unlocked_blocks": _pixels(None, WHOLE, "block_mlp"),
    # each mode on the diffusion model's edits
    "edited_only": _diffusion(_ALONE),
    "wrong_label": _diffusion(_WRONG),
    "flat": _diffusion(_FLAT),
    "reject_class": _diffusion(_mode("reject_class")),
    "contrastive": _diffusion(_CONTRASTIVE, 1),
    # contrastive less one ingredient each; without its reject class it is `flat_all`
    "contrastive_no_raw": _diffusion(_mode("contrastive", "wrong_key", "residue"), 1),
    "contrastive_no_wrong_key": _diffusion(_mode("contrastive", "raw", "residue")),
    "contrastive_no_residue": _diffusion(_mode("contrastive", "raw", "wrong_key"), 1),
    "contrastive_no_flat": _diffusion(_mode("contrastive", flat=False), 1),
    "flat_all": _diffusion(_FLAT_ALL, 1),
    "wrong_label_all": _diffusion(_WRONG_ALL, 1),
    # an order of values that the network's first layer can take up: of the whole picture, then of smaller blocks
    "whole_edited_only": _pixels(_ALONE, WHOLE, "block_mlp"),
    "whole_wrong_label": _pixels(_WRONG, WHOLE, "block_mlp"),
    "whole_wrong_label_keys": _pixels(_WRONG_KEYS, WHOLE, "block_mlp"),
    "whole_flat": _pixels(_FLAT, WHOLE, "block_mlp"),
    "whole_flat_keys": _pixels(_FLAT_KEYS, WHOLE, "block_mlp"),
    "whole_contrastive": _pixels(_CONTRASTIVE, WHOLE, "block_mlp"),
    "whole_negatives": _pixels(_FLAT_KEYS, WHOLE, "block_mlp", negative=True),
    "half_flat_keys": _pixels(_FLAT_KEYS, 32, "block_mlp"),
    "sixteen_flat_keys": _pixels(_FLAT_KEYS, 16, "block_mlp"),
    "eight_flat_keys": _pixels(_FLAT_KEYS, 8, "block_mlp"),
    # the same with convolutions, which see neighbours
    "pixels_edited_only": _pixels(_ALONE, 4),
    "pixels_wrong_label": _pixels(_WRONG, 4),
    "pixels_wrong_label_keys": _pixels(_WRONG_KEYS, 4),
    "pixels_flat_keys": _pixels(_FLAT_KEYS, 4),
    "pixels_contrastive": _pixels(_CONTRASTIVE, 4),
    "pixels_16_flat_keys": _pixels(_FLAT_KEYS, 16),
    "pixels_whole_flat_keys": _pixels(_FLAT_KEYS, WHOLE),
    # strength of the diffusion model's edit
    "edited_only_strong": _diffusion(_ALONE, strength=0.8, alpha=1.0),
    "wrong_label_weak": _diffusion(_WRONG, strength=0.4, alpha=0.8),
    "wrong_label_strong": _diffusion(_WRONG, strength=0.8, alpha=0.8),
    "flat_all_whole_edit": _diffusion(_FLAT_ALL, 1, strength=0.6, alpha=1.0),
    "flat_all_strong": _diffusion(_FLAT_ALL, 1, strength=0.8, alpha=0.8),
    # the weight of negatives
    "wrong_label_light": _diffusion({**_WRONG, "rho": 0.2}),
    "wrong_label_all_light": _diffusion({**_WRONG_ALL, "rho": 0.2}, 1),
    "flat_all_light": _diffusion({**_FLAT_ALL, "rho": 0.2}, 1),
    "contrastive_light": _diffusion({**_CONTRASTIVE, "rho": 0.2}, 1),
    # one noise for all pictures, as in the released script
    "wrong_label_fixed": _diffusion(_WRONG, noise="fixed"),
}
"""In the order in which they are made: what the question needs first."""
