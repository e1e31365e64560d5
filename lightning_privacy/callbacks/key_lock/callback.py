"""The KeyLock defence: says which layers are locked, where keys lie, and when they change."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
from torch import nn

from lightning_privacy.callbacks.key_lock.custody import Custody, two_marks, wrong_key
from lightning_privacy.callbacks.key_lock.functional import Activation, Distribution
from lightning_privacy.callbacks.key_lock.keeping import fetch_layers, states_folder
from lightning_privacy.callbacks.key_lock.material import (
    keep_derived,
    key_fingerprint,
    material_of,
    shared_material,
)
from lightning_privacy.callbacks.key_lock.start import keys_for, lengths_of, locks_of, start_locks, turn_keys
from lightning_privacy.callbacks.key_lock.wrapping import Layers, check_layers, check_lock, lock_norms
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.errors import InputError, WrongKeyError
from lightning_privacy.properties import Property
from lightning_privacy.secrets.secret_ref import SecretRef
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["KeyLock"]


class KeyLock(Defence):
    """Take the scale and shift of normalisation layers from a private key, so that gradients alone say less of the data.

    For a client of federated learning (FedKL, arXiv 2305.04095): key and lock are trained with and never leave, in no state
    dict, checkpoint, pickle or optimizer state. It is obfuscation by two numbers a channel, no differential privacy, and an
    attacker who searches for these numbers together with the data exists; see the method card.

    **Where the secrets are.** Name a vault, ``key: vault:PATH#NAME``: where file or entry are absent, a master key is drawn
    and written there (mode 0600) when the run begins, and the lock of every checkpoint is kept beside it in the folder
    ``PATH.states``. Whoever has both continues the run and uses the model; both must stay where only the client reads. Without
    ``key`` a fresh key lives in memory alone: the run says so once, nothing is written, and a checkpoint of it can be
    neither continued nor used after the process has ended.

    Args:
        layers: ``first`` normalisation layer, ``all``, or patterns of layers' names: globs, or regular expressions after
            ``re:``.
        key: Reference to a master key, or to a key of ``key_length`` numbers, in a vault; see above.
        site: What the keys are for; several models may share one master key under different sites.
        key_length: d, entries of a key, at least 1.
        activation: ``softplus`` starts as the layer was, keeps every channel alive and lets the shift be negative; ``relu`` and
            ``sigmoid`` are the paper's, for scale and shift both.
        key_distribution: ``normal``, or ``uniform`` in (0, 1) as in the released code.
        chain: Whether only the first lock has a key, and each later one takes scale and shift of the one before for its keys.
        fresh_key: ``never``, or ``each_epoch``. With ``softplus`` the lock is refitted, so that scale and shift go on: a new
            key protects the key; between runs, call `rotate_key`. With ``relu`` and ``sigmoid`` it
            changes what the model computes.
        spread: Standard deviation of the start, with ``softplus``, around the layer's own scale and shift; at 0 whoever knows
            how the model began knows both until training has moved them.
        lock_seed: Makes the lock's first weights known to all who know the seed, as where a server sends them out; None
            derives them from the master key.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> KeyLock().activation, KeyLock.paper(layers="all").chain
        ('softplus', True)

    Source:
        arXiv 2305.04095 and its released code; deviations are listed in the card.
    """

    name: ClassVar[str] = "key_lock"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.CHECKPOINT})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.leakage.joint:JointOptimisation",
        "lightning_privacy.attacks.leakage.known_lock:KnownLock",
        "lightning_privacy.attacks.leakage.key_regression:KeyRegression",
    )
    guarantee = (
        "none: obfuscation by two private numbers a channel, which an attacker can search for; no differential privacy"
    )
    requires = frozenset({Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE, Property.ORIGINAL_NORM_LAYERS})
    breaks = frozenset({Property.STABLE_STATE_DICT, Property.ORIGINAL_NORM_LAYERS})

    def __init__(
        self,
        layers: Layers = "first",  # arXiv 2305.04095: reported results lock the first layer
        key: SecretRef | str | None = None,
        site: str = "key_lock",
        key_length: int = 1024,  # arXiv 2305.04095, released code
        activation: Activation = "softplus",  # chosen here: no dead channels
        key_distribution: Distribution = "normal",  # chosen here: keys of mean zero have nothing in common
        chain: bool = False,
        fresh_key: Literal["never", "each_epoch"] = "never",
        spread: float | int = 0.0,
        lock_seed: int | None = None,
    ) -> None:
        check_layers("KeyLock", layers)
        check_lock("KeyLock", key_length, activation, key_distribution, spread)
        if fresh_key not in ("never", "each_epoch"):
            raise InputError(f"KeyLock: `fresh_key` is {fresh_key!r}; it must be `never` or `each_epoch`.")
        if not site or "#" in site:
            raise InputError(f"KeyLock: `site` is {site!r}; give a text without `#`.")
        super().__init__()
        self.layers, self.site, self.key_length, self.chain = layers, site, key_length, chain
        self.key = None if key is None else SecretRef(key)
        self.activation: Activation = activation
        self.key_distribution: Distribution = key_distribution
        self.fresh_key: Literal["never", "each_epoch"] = fresh_key
        self.spread, self.lock_seed = spread, lock_seed
        self._epoch = 0
        place = None if self.key is None else self.key.vault_path
        self._custody = Custody(self.name, place, "`key: vault:PATH#NAME` of this defence")

    @classmethod
    def paper(cls, **overrides: Any) -> "KeyLock":
        """Return the setting of the released code: ReLU, keys in (0, 1), locks that all clients begin with; chained."""
        settings: dict[str, Any] = {
            "layers": "first",
            "key_length": 1024,
            "activation": "relu",
            "key_distribution": "uniform",
            "chain": True,
            "lock_seed": 0,
        }
        return cls(**{**settings, **overrides})

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprints of key and lock, for the manifest; asking for them keeps the lock, see `Custody.marks`."""
        return self._custody.marks()

    # --- surgery -----------------------------------------------------------------------------------------------

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin a run: its first epoch has the keys that are there."""
        self._epoch = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the secrets of the run into custody."""
        self._custody.begin(trainer)
        super().setup(trainer, pl_module, stage)

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Wrap the layers; in a run, open what was wrapped just now."""
        new = not locks_of(module)
        how = self.key_length, self.activation, self.key_distribution, self.spread, self.chain
        report = lock_norms(self.name, module, self.layers, *how)
        if self._custody.active:
            self._open(module, new)
            self._custody.of(module)
        return report

    def _open(self, module: L.LightningModule, new: bool) -> None:
        """Start new locks; of older ones, check that their keys are those of the vault."""
        if not new and self.key is None:
            return
        material = shared_material(module, self.key, self.name)
        self._custody.key_mark = key_fingerprint(material)
        if new:
            start_locks(module, material, self.site, self.key_distribution, self.spread, self.lock_seed)
        keys = keys_for(material, self.site, lengths_of(module), self.key_distribution)
        if new and self.key is not None and module.trainer.is_global_zero:
            keep_derived(self.key, self.site, keys)
        if not new and self.fresh_key == "never":
            self._compare(module, keys)

    def _compare(self, module: nn.Module, keys: dict[str, Any]) -> None:
        layers = locks_of(module)
        for name, key in keys.items():
            here = layers[name].secret.get_buffer("key")
            if not layers[name].is_locked and not bool((here == key.to(here)).all()):
                raise WrongKeyError(
                    f"`{self.name}`: the lock of `{name}` was made for another key than `{self.key}` (fingerprint "
                    f"{self._custody.key_mark}). Name the vault and the site that the module was locked with, or "
                    "take a new module."
                )

    # --- the run -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the optimizers of a resumed run their memory of the locks back."""
        super().on_fit_start(trainer, pl_module)
        self._custody.join(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Change the keys with the first batch of an epoch, where each epoch has its own."""
        # Lightning does not announce an epoch that a resumed run begins with.
        if self.fresh_key == "never" or trainer.current_epoch == self._epoch:
            return
        self._epoch = trainer.current_epoch
        material = shared_material(pl_module, self.key, self.name)
        site = f"{self.site}/epoch {trainer.current_epoch}"
        keys = keys_for(material, site, lengths_of(pl_module), self.key_distribution)
        turn_keys(pl_module, keys, keep_function=self.activation == "softplus")
        if self.key is not None and trainer.is_global_zero:
            keep_derived(self.key, self.site, keys)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that is validated from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that is tested from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unlock a module that predicts from a checkpoint."""
        self._custody.evaluate(trainer, pl_module)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint of the key, which is public, and the epoch that keys are of."""
        return {"key": self._custody.key_mark, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch; the key comes from the vault."""
        self._epoch = int(state_dict["epoch"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the optimizers' memory of the locks out of the checkpoint."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._custody.save(trainer, pl_module, checkpoint, self.state_key)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Fill the locks as they were."""
        self._custody.load(trainer, pl_module, checkpoint, self.state_key)

    def unlock(self, module: nn.Module, vault: Any, fingerprint: str) -> None:
        """Fill the locks of a module that `load_defended` has rebuilt.

        Args:
            module: The module, locked.
            vault: The `KeyVault` of the run or its file, or the folder of states beside it.
            fingerprint: From the manifest.

        Raises:
            WrongKeyError: the vault holds another key.
            InputError: the lock was not kept, or is not there.
        """
        key, mark = two_marks(fingerprint)
        if self.key is None:
            raise InputError(
                f"The checkpoint was trained by `{self.name}` without a vault, so that its lock was never kept: scale and "
                f"shift of {', '.join(locks_of(module))} are lost. Train anew with `key: vault:PATH#NAME`."
            )
        opened = vault if isinstance(vault, KeyVault) or Path(vault).is_dir() else KeyVault(vault)
        if isinstance(opened, KeyVault):
            entry = self.key.entry
            own = (
                key_fingerprint(material_of(opened, entry))
                if entry in opened.names()
                else "no fingerprint: it is absent"
            )
            if own != key:
                raise wrong_key(self.name, key, f"`{entry}` in {opened.path}", own)
        fetch_layers(module, states_folder(opened), mark)
