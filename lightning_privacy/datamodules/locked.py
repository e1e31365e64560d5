"""A datamodule around any other whose pictures are edited by a key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from lightning_privacy.datamodules.edit_pass import edit_all
from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.locked_pictures import KEYED, LockedPictures
from lightning_privacy.datamodules.membership_split import TRANSFER_HOOKS
from lightning_privacy.datamodules.pool import innermost, open_pool
from lightning_privacy.datamodules.resumable_loader import FixedLoader, rank_and_world, resumable_loader
from lightning_privacy.editors.editor import Editor
from lightning_privacy.editors.protocol import KeyedEditor
from lightning_privacy.editors.stored import EditStore
from lightning_privacy.errors import InputError

__all__ = ["LockedDataModule", "find_locked"]

_LOCK = "model_lock"
"""Name of the defence for which the edits are made."""


class LockedDataModule(L.LightningDataModule):
    """Edits every picture of another datamodule by a key, once, and hands out edited and raw pictures side by side.

    Order: the data, `LockedDataModule` around it, `MembershipSplit` outermost. A record's identity stays that of its raw
    picture, so that a locked and an undefended run have the same split. Batches keep their form: ``image`` (or the first of
    a tuple) is the edited picture, ``raw`` (or the one after the last) the picture as it was. Both pass through the same
    geometry after the edit. Edits are kept on disk by picture and key, shared by ranks and by runs; a run that was killed
    edits only what is missing.

    Args:
        inner: The data, pictures in [0, 1], without random augmentation of its own.
        editor: Holds the key.
        cache: Folder of the edits; it shows what the key does, so keep it as private as the pictures. Null keeps them in
            memory, where every process edits everything anew.
        locked: Whether the model is to see edited pictures. False trains it on the raw ones with all else the same, to
            compare with; take the defence out as well.
        decoys: Wrong keys of every kind (prompt, seed) whose edits are made too, for a defence that trains against them.
        crop: Side of a square that is cut from the middle after the edit, as after 256 pixels the usual 224; null for all.
        shift: Most pixels by which training pictures move, raw and edited alike.
        mirror: Whether half of the training pictures are mirrored, raw and edited alike.
        seed: Of augmentation and of decoys' turns.
        batch_size: Pictures edited at a time.
        device: Where edits are made: ``auto`` for the trainer's device.
        unreadable: A record that cannot be read is an ``error`` or left out with a warning (``skip``).
        damaged: A kept edit that cannot be read is made anew (``redo``) or an ``error``.

    Raises:
        InputError: an argument is out of range; at set-up, the data cannot be edited.

    Example:
        >>> from lightning_privacy.editors import LockSecret, PixelShuffleEditor
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> editor = PixelShuffleEditor.with_secret(LockSecret(seed=bytes(32)))
        >>> data = LockedDataModule(ToyImages(n=8, size=8), editor, cache=None)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape == batch["raw"].shape, bool((batch["image"] == batch["raw"]).all())
        (True, False)
    """

    def __init__(
        self,
        inner: L.LightningDataModule,
        editor: Editor,
        cache: str | Path | None = "private/edits",
        locked: bool = True,
        decoys: int = 0,
        crop: int | None = None,
        shift: int = 0,
        mirror: bool = False,
        seed: int = 0,
        batch_size: int = 16,
        device: str = "auto",
        unreadable: Literal["error", "skip"] = "error",
        damaged: Literal["redo", "error"] = "redo",
    ) -> None:
        super().__init__()
        if decoys < 0 or shift < 0 or batch_size < 1 or (crop is not None and crop < 1):
            raise InputError(
                f"LockedDataModule needs decoys >= 0, shift >= 0, batch_size >= 1 and crop >= 1, but was given {decoys}, "
                f"{shift}, {batch_size}, {crop}."
            )
        if isinstance(inner, LockedDataModule) or find_locked(inner) is not None or hasattr(inner, "split_hash"):
            raise InputError(
                f"LockedDataModule wraps the data themselves, not a {type(inner).__name__}: MembershipSplit goes around it, "
                "and one lock is enough."
            )
        self.inner, self.editor, self.cache = inner, editor, None if cache is None else Path(cache).expanduser()
        self.locked, self.decoys, self.crop, self.shift, self.mirror = locked, decoys, crop, shift, mirror
        self.seed, self.batch_size, self.device = seed, batch_size, device
        self.unreadable: Literal["error", "skip"] = unreadable
        self.damaged: Literal["redo", "error"] = damaged
        # by id; the raw dataset is kept, so that no other one can get its id
        self._wrapped: dict[tuple[int, bool], tuple[Any, LockedPictures]] = {}
        self._stores: dict[str, EditStore] = {}
        self._told = False
        for hook in TRANSFER_HOOKS:
            if is_overridden(hook, inner):
                setattr(self, hook, getattr(inner, hook))

    def prepare_data(self) -> None:
        """Let the inner datamodule prepare its files; make the key where it was asked for (one process a machine)."""
        self.inner.prepare_data()
        if self.editor.create_key():
            rank_zero_info(
                f"LockedDataModule wrote a new key to {self.editor.key_ref} (mode 0600). Keep it, and do not share it: without "
                "it the model works for nobody."
            )

    def setup(self, stage: str) -> None:
        """Set the inner datamodule up; pictures are edited when a loader is first asked for."""
        if stage == "fit" and self.locked:
            self._expect_lock()
        self.inner.trainer = self.trainer
        self.inner.setup(stage)

    def _expect_lock(self) -> None:
        """Warn where a model is trained on edited pictures and nothing says so."""
        callbacks = getattr(self.trainer, "callbacks", None)
        if callbacks is None or any(getattr(each, "name", None) == _LOCK for each in callbacks):
            return
        rank_zero_warn(
            f"LockedDataModule shows the model pictures edited with a key, and no `{_LOCK}` is among the callbacks: it is "
            "trained on edited pictures alone, its accuracy without the key is not logged, and its checkpoints do not name the "
            "key. Add ModelLock (`defences: {model_lock: {}}`; `mode: edited_only` and `rho: 0` train alike), or set "
            "`locked: false` to train on raw pictures."
        )

    # --- the edits -----------------------------------------------------------------------------------------------

    def editors(self) -> dict[str, KeyedEditor]:
        """Return the editor and the decoys, by the names of their edits."""
        wrong = {
            f"{kind} {number}": self.editor.decoy(kind, number)
            for kind in (self.editor.decoys if self.decoys else ())
            for number in range(self.decoys)
        }
        return {KEYED: self.editor, **wrong}

    def wrap(self, dataset: Any, training: bool) -> LockedPictures:
        """Return a raw dataset with its edits, made now where they are missing; all ranks must call it.

        Args:
            dataset: Map-style, of pictures in [0, 1].
            training: Whether it is trained on: others need no decoys.

        Raises:
            InputError: it augments at random, or cannot be read.
        """
        known = self._wrapped.get((id(dataset), training))
        if known is not None:
            return known[1]
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(
                f"LockedDataModule needs a map-style dataset; {type(dataset).__name__} has no `__len__`, so its pictures "
                "cannot be edited once."
            )
        if len(dataset) and getattr(innermost(dataset, 0)[0], "keyed_by_epoch", False):
            raise InputError(
                f"{type(self.inner).__name__} augments its pictures, so that no edit could be kept. Set `augment: false` "
                "there, and `shift` and `mirror` of LockedDataModule, which act after the edit, on raw and edited ones alike."
            )
        editors = {name: e for name, e in self.editors().items() if training or name == KEYED}
        on_grid = self.editor.grid != "none"
        for name, each in editors.items():
            if name not in self._stores:
                self._stores[name] = EditStore(self.cache, each.fingerprint(), on_grid, self.damaged)
        stores = {name: self._stores[name] for name in editors}
        rank, world = (0, 1) if self.cache is None else rank_and_world(self.trainer)
        self.editor.to(self._device())
        try:
            readable = edit_all(
                dataset,
                editors,
                stores,
                batch_size=self.batch_size,
                unreadable=self.unreadable,
                rank=rank,
                world_size=world,
            )
        finally:
            self.editor.release()  # the model that is trained needs the memory
        made = LockedPictures(
            dataset,
            readable,
            stores,
            locked=self.locked,
            on_grid=on_grid,
            crop=self.crop,
            shift=self.shift if training else 0,
            mirror=self.mirror and training,
            seed=self.seed,
        )
        self._wrapped[id(dataset), training] = (dataset, made)
        self._tell()
        return made

    def _device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _tell(self) -> None:
        if not self._told:
            rank_zero_info(
                f"LockedDataModule: pictures are edited by `{self.editor.name}`, key {self.editor.fingerprint()[:12]}; edits "
                f"are kept in {self.cache or 'memory'}"
            )
            self._told = True

    # --- loaders -------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training pictures in batches like the inner datamodule's, in an order that resumes exactly."""
        pool = open_pool(self.inner)
        dataset = self.wrap(pool.dataset, training=True)
        rank, world = rank_and_world(self.trainer)
        sampler = EpochSampler(
            len(dataset),
            batch_size=pool.batch_size,
            shuffle=pool.shuffle,
            drop_last=pool.drop_last,
            seed=self.seed,
            rank=rank,
            world_size=world,
        )
        return resumable_loader(dataset, sampler, self.trainer, **pool.options)

    def val_dataloader(self) -> Any:
        """Return the inner datamodule's validation pictures with their edits."""
        return self._others("val_dataloader")

    def test_dataloader(self) -> Any:
        """Return the inner datamodule's test pictures with their edits."""
        return self._others("test_dataloader")

    def predict_dataloader(self) -> Any:
        """Return the inner datamodule's pictures to predict, with their edits."""
        return self._others("predict_dataloader")

    def _others(self, which: str) -> Any:
        if not is_overridden(which, self.inner):
            return []
        found = getattr(self.inner, which)()
        several = [found] if isinstance(found, DataLoader) else found
        if not isinstance(several, Sequence) or not all(isinstance(each, DataLoader) for each in several):
            raise InputError(
                f"{type(self.inner).__name__}.{which}() returned a {type(found).__name__}; LockedDataModule takes one "
                "DataLoader, or a list of them."
            )
        made = [self._fixed(each) for each in several]
        return made[0] if isinstance(found, DataLoader) else made

    def _fixed(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        keep = ("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn")
        if loader.batch_size is None:
            raise InputError(
                f"A loader of {type(self.inner).__name__} has no `batch_size`; LockedDataModule needs one."
            )
        return FixedLoader(self.wrap(loader.dataset, training=False), **{k: getattr(loader, k) for k in keep})

    # --- Lightning -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the inner datamodule's state."""
        inner = self.inner.state_dict()
        return {"inner": inner} if inner else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the inner datamodule's state."""
        self.inner.load_state_dict(state_dict["inner"])

    def teardown(self, stage: str) -> None:
        """Let the inner datamodule clean up; the edits stay."""
        self.inner.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the inner datamodule."""
        self.inner.on_exception(exception)


def find_locked(datamodule: Any) -> LockedDataModule | None:
    """Return the `LockedDataModule` in a chain of wrapping datamodules, or None.

    Args:
        datamodule: The outermost, or None.
    """
    while datamodule is not None and not isinstance(datamodule, LockedDataModule):
        datamodule = getattr(datamodule, "inner", None)
    return datamodule
