"""Using a locked model: edit, then classify."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.editors.protocol import KeyedEditor
from lightning_privacy.errors import InputError, ManifestError, WrongKeyError

__all__ = ["UnlockedPredictor", "key_mark_of"]


class UnlockedPredictor:
    """A locked model and the editor that unlocks it, for those who hold the key.

    Args:
        model: Maps pictures to class scores; put in evaluation mode.
        editor: Holds the key.
        fingerprint: Of the key that the model was locked with, or the path of its checkpoint.
        crop: Side of the square that `LockedDataModule` cut from the middle after the edit; None for all.

    Raises:
        WrongKeyError: the editor has another key.

    Example:
        >>> from lightning_privacy.editors import LockSecret, NegativePositiveEditor
        >>> editor = NegativePositiveEditor.with_secret(LockSecret(seed=bytes(32)))
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> UnlockedPredictor(model, editor, editor.fingerprint())(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, editor: KeyedEditor, fingerprint: str | Path, crop: int | None = None) -> None:
        expected = str(fingerprint)
        if len(expected) != 64 or not all(c in "0123456789abcdef" for c in expected):
            expected = key_mark_of(fingerprint)
        if editor.fingerprint() != expected:
            raise WrongKeyError(
                f"The model was locked with the key {expected[:12]}, and this editor has {editor.fingerprint()[:12]}: it would "
                "answer at random. Give the editor the settings and the vault entry that the model was locked with."
            )
        self.model, self.editor, self.crop = model.eval(), editor, crop

    def __call__(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores.

        Args:
            images: Raw pictures in [0, 1], of the size at which the training data were edited.

        Raises:
            InputError: they are smaller than the square that is cut.
        """
        edited = self.editor.edit(images)
        if self.crop is not None:
            top, left = ((side - self.crop) // 2 for side in edited.shape[2:])
            if top < 0 or left < 0:
                raise InputError(f"Pictures of {tuple(edited.shape[2:])} pixels are smaller than `crop`, {self.crop}.")
            edited = edited[:, :, top : top + self.crop, left : left + self.crop]
        with torch.no_grad():
            return self.model(edited)


def key_mark_of(path: str | Path) -> str:
    """Return the fingerprint of the key that a checkpoint's model was locked with.

    Args:
        path: A checkpoint.

    Raises:
        ManifestError: it is none, or of a model that is not locked.
    """
    from lightning_privacy.core.manifest_record import read_manifest

    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:  # torch raises several kinds for files it will not read
        raise ManifestError(f"{path} cannot be read as a checkpoint: {str(failure).splitlines()[0]}.") from failure
    entry = ((read_manifest(saved) or {}).get("defences") or {}).get("model_lock")
    if entry is None or not entry.get("key_fingerprint"):
        raise ManifestError(f"{path} is no checkpoint of a locked model: its manifest has no `model_lock` with a key.")
    return entry["key_fingerprint"]
