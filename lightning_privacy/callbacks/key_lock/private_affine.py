"""The PrivateAffine defence: a private scale and shift without any key, and what a key has to be better than."""

from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
from torch import nn

from lightning_privacy.callbacks.key_lock.custody import Custody, two_marks
from lightning_privacy.callbacks.key_lock.keeping import fetch_layers, states_folder
from lightning_privacy.callbacks.key_lock.layers import PrivateAffineNorm
from lightning_privacy.callbacks.key_lock.start import private_norms
from lightning_privacy.callbacks.key_lock.wrapping import Layers, check_layers, wrap_norms
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["PrivateAffine"]


class PrivateAffine(Defence):
    """Keep the scale and shift of normalisation layers on the client; there is no key.

    What is hidden is what `KeyLock` hides: two numbers a channel. Clients share running statistics and all other weights.
    No differential privacy: an attacker can search for these numbers together with the data, see the method card.

    Args:
        layers: ``first`` normalisation layer, ``all``, or patterns of layers' names: globs, or regular expressions after
            ``re:``.
        private: Folder where scale and shift, and the optimizer's memory of them, are kept for every checkpoint, in files of
            mode 0600; it is made if absent and must stay where only the client reads. None keeps nothing: a checkpoint of the
            run can then be neither continued nor used after the process has ended, as the run says once.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> PrivateAffine().init_args
        {'layers': 'first', 'private': None}

    Source:
        Normalisation layers that stay local: arXiv 2102.07623 (FedBN), here without the running statistics.
    """

    name: ClassVar[str] = "private_affine"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.CHECKPOINT})
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("lightning_privacy.attacks.leakage.joint:JointOptimisation",)
    guarantee = "none: two private numbers a channel, which an attacker can search for; no differential privacy"
    requires = frozenset({Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE, Property.ORIGINAL_NORM_LAYERS})
    breaks = frozenset({Property.STABLE_STATE_DICT, Property.ORIGINAL_NORM_LAYERS})

    def __init__(
        self,
        layers: Layers = "first",  # chosen here: as KeyLock, with which it is compared
        private: str | None = None,
    ) -> None:
        check_layers("PrivateAffine", layers)
        super().__init__()
        self.layers, self.private = layers, private
        place = None if private is None else Path(private).expanduser()
        self._custody = Custody(self.name, place, "`private: FOLDER` of this defence")

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprint of scale and shift, for the manifest; asking for it keeps them, see `Custody.marks`."""
        return self._custody.marks()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the secrets of the run into custody."""
        self._custody.begin(trainer)
        super().setup(trainer, pl_module, stage)

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Wrap the layers; outside a run they are locked, for their values are then those of another model."""
        before = private_norms(module)
        report = wrap_norms(self.name, module, self.layers, PrivateAffineNorm, PrivateAffineNorm)
        if self._custody.active:
            self._custody.of(module)
        elif not before:
            for layer in private_norms(module).values():
                layer.secret.lock()
        return report

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the optimizers of a resumed run their memory of scale and shift back."""
        super().on_fit_start(trainer, pl_module)
        self._custody.join(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that is validated from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that is tested from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that predicts from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the optimizers' memory of scale and shift out of the checkpoint."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._custody.save(trainer, pl_module, checkpoint, self.state_key)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Fill scale and shift as they were."""
        self._custody.load(trainer, pl_module, checkpoint, self.state_key)

    def unlock(self, module: nn.Module, vault: Any, fingerprint: str) -> None:
        """Fill the layers of a module that `load_defended` has rebuilt.

        Args:
            module: The module, locked.
            vault: The folder that was given as ``private``.
            fingerprint: From the manifest.

        Raises:
            InputError: scale and shift were not kept, or are not there.
        """
        if self.private is None:
            raise InputError(
                f"The checkpoint was trained by `{self.name}` without `private`, so that scale and shift of "
                f"{', '.join(private_norms(module))} were never kept: they are lost. Train anew with `private: FOLDER`."
            )
        fetch_layers(module, states_folder(vault), two_marks(fingerprint)[1])
