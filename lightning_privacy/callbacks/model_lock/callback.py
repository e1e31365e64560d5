"""The ModelLock defence: checks the data side, adds what its mode asks for to the loss, and counts UP and LP."""

from typing import Any, ClassVar

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.model_lock import functional as math
from lightning_privacy.callbacks.model_lock.batches import raw_of, sees_edits, take_negatives
from lightning_privacy.callbacks.model_lock.detection import (
    DetectionTally,
    check_detector,
    is_detector,
    negative_loss,
)
from lightning_privacy.callbacks.model_lock.negatives import Mode, Negative, check_flat, check_rho, negatives_of
from lightning_privacy.callbacks.model_lock.reject import HeadListener, add_reject, find_reject, running_statistics
from lightning_privacy.callbacks.model_lock.tally import LockTally
from lightning_privacy.core.batches import has_labels, images_of, labels_of, with_images
from lightning_privacy.core.defence import Defence, Slot, Step, SurgeryReport, require
from lightning_privacy.datamodules.locked import LockedDataModule, find_locked
from lightning_privacy.editors.lock_key import check_same_key
from lightning_privacy.editors.protocol import KeyedEditor
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.properties import Property

__all__ = ["Mode", "ModelLock"]

_SNIPPET = "    def logits(self, batch):\n        return self.network(batch[0])"


class ModelLock(Defence):
    """Train a classifier that is right on pictures edited with a key and, as far as the mode goes, on no others.

    Needs `LockedDataModule` around the data, which holds the key and hands out edited and raw pictures. The idea is that
    of ModelLock (arXiv 2405.16285), whose training code was never released: only ``edited_only`` is said in its abstract.
    Trained on edited pictures alone, a model often works on raw ones too. The other modes train against that, and a
    lock of theirs is only as good as the negatives it has seen; see the method card.

    Every validation epoch logs UP (accuracy with the key), LP (accuracy without it, the reject class left out, as an
    attacker would) and their gap; of a detector (`ImageDetector`) average precision takes accuracy's place, and what
    other modes send to a reject class is taught to hold no object.

    Args:
        mode: ``edited_only``: nothing but edited pictures. ``wrong_label``: negatives besides, with another class each, the
            same whenever it is seen. ``flat``: negatives besides, their class scores made flat, as labels drawn anew each
            time would make them in the mean. ``reject_class``: negatives besides, sent to one more output.
            ``contrastive``: sent there and their class scores made flat.
        rho: Weight of these negatives in the loss, 0 to below 1; 0 with ``edited_only``, and only there.
        head: Name of the classifier's last linear layer, to which the reject output is added; null finds it.
        negatives: What is trained against: of ``raw`` (raw pictures), ``wrong_key`` (edits with wrong keys, which need
            ``decoys`` of `LockedDataModule`) and ``residue`` (raw pictures with the mean residue of the batch's other
            edits); records take turns. Null: all three with ``contrastive``, else ``raw``.
        flat: Whether ``contrastive`` makes the scores of negatives flat; false leaves ``reject_class`` with its negatives.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> ModelLock().rho, ModelLock.paper().mode
        (0.5, 'edited_only')
    """

    name: ClassVar[str] = "model_lock"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.OBJECTIVE, Slot.CHECKPOINT})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.lock.residual:MeanResidual",
        "lightning_privacy.attacks.lock.value_map:ValueOrder",
        "lightning_privacy.attacks.lock.value_map:BlockMap",
        "lightning_privacy.attacks.lock.score_map:ScoreMap",
        "lightning_privacy.attacks.lock.unlocker:PairUnlocker",
        "lightning_privacy.attacks.lock.unlocker:LabelUnlocker",
        "lightning_privacy.attacks.lock.finetuning:FineTune",
        "lightning_privacy.attacks.lock.finetuning:HeadTune",
        "lightning_privacy.attacks.lock.distillation:Distillation",
    )
    after: ClassVar[frozenset[str]] = frozenset({"smp_lora"})  # whose ratio may start from the module's own loss
    guarantee = (
        "none: the edit is hard to imitate or it is not, and a prompt can be guessed (70 published ones are 6 bits); "
        "the weights can be trained on"
    )

    def __init__(
        self,
        mode: Mode = "wrong_label",  # chosen here: the only one with a gap once reject classes are ignored, see the card
        rho: float | int = 0.5,  # chosen here: one negative a keyed picture
        head: str | None = None,
        negatives: list[Negative] | None = None,
        flat: bool = True,
    ) -> None:
        self.negatives = negatives_of(mode, negatives)
        check_rho(mode, rho)
        check_flat(mode, flat)
        super().__init__()
        self.mode: Mode = mode
        self.rho, self.head, self.flat = rho, head, flat
        rejects = mode in ("reject_class", "contrastive")
        acting = {Slot.CHECKPOINT} | ({Slot.OBJECTIVE} if rho else set()) | ({Slot.SURGERY} if rejects else set())
        self.slots = frozenset(acting)  # pyright: ignore[reportAttributeAccessIssue]  less than the class's in some modes
        launched = {Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE}
        stepped = {Property.ONE_STEP_PER_CLOSURE, Property.AUTOMATIC_OPTIMIZATION}
        self.requires = frozenset(launched | stepped if rho else launched)
        broken = {Property.STABLE_STATE_DICT} if rejects else set()
        # a residue is a mean over the batch
        mixed = "residue" in (self.negatives or [])
        self.breaks = frozenset(broken | ({Property.PER_SAMPLE_SEPARABLE} if mixed else set()))
        self.editor: KeyedEditor | None = None
        """Who edits the pictures of this run; None before it has started."""
        self.public_key: dict[str, Any] = {}
        self._listener, self._tally, self._found = HeadListener(self.name), LockTally(), DetectionTally()
        self._saved: dict[str, Any] = {}

    @classmethod
    def paper(cls, **overrides: Any) -> "ModelLock":
        """Return what the paper's abstract says: fine-tuning on the edited pictures alone."""
        return cls(**{"mode": "edited_only", "rho": 0.0, **overrides})

    @property
    def key_fingerprint(self) -> str | None:
        """Fingerprint of the key, for the manifest."""
        return None if self.editor is None else self.editor.fingerprint()

    @property
    def reject_index(self) -> int | None:
        """Column of the reject class in what ``module.logits`` returns: none has it, see `all_scores`."""
        return None

    # --- the run -------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the data side.

        Raises:
            NoEffectError: a model is to be trained whose pictures nobody edits.
        """
        locked = find_locked(getattr(trainer, "datamodule", None))
        if stage == "fit":
            self._check_data(locked)
        if is_detector(pl_module):
            check_detector(pl_module, self.mode, self.name)
            # a detector's background is its reject class
            self.slots = self.slots - {Slot.SURGERY}  # pyright: ignore[reportAttributeAccessIssue]
        if locked is not None and locked.locked:
            self.editor, self.public_key = locked.editor, locked.editor.public()
        super().setup(trainer, pl_module, stage)

    def _check_data(self, locked: LockedDataModule | None) -> None:
        if locked is None:
            raise NoEffectError(
                f"`{self.name}` locks nothing without edited pictures: wrap the data in `LockedDataModule(inner, editor)`, "
                "inside `MembershipSplit` where there is one."
            )
        if not locked.locked:
            raise NoEffectError(
                f"`{self.name}` is to lock a model whose LockedDataModule has `locked: false` and shows it raw pictures. Set "
                "it to true, or take the defence out for the undefended model to compare with."
            )
        if "wrong_key" in (self.negatives or []) and not locked.decoys:
            raise InputError(
                f"`{self.name}` with `mode: {self.mode}` trains against edits with wrong keys, and LockedDataModule has "
                "`decoys: 0`. Set `decoys: 1` or more there, or leave `wrong_key` out of `negatives`."
            )

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Add the reject output."""
        name, added = add_reject(module, self.head, self.name)
        return SurgeryReport((name,), added, {"reject": name})

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check that the batch is an edited one; listen to the last layer."""
        sees_edits(batch, self.name)
        found = find_reject(pl_module)
        if Slot.SURGERY in self.slots and found is not None:
            self._listener.listen(found[1])

    def objective(self, step: Step) -> Tensor:
        """Return ``(1 - rho) L + rho N``, where N is the loss of the negatives and L includes not to be rejected."""
        images = images_of(step.batch)
        negatives = take_negatives(step.batch, step.trainer.current_epoch, self.negatives or [])
        if is_detector(step.module):
            with running_statistics(step.module):
                return self._weighed(step, step.loss, negative_loss(step.module, step.batch, negatives, self.mode))
        logits = require(step.module, "logits", self.name, _SNIPPET)
        rejects = Slot.SURGERY in self.slots
        keyed = self._listener.take(len(images)) if rejects else None
        found = find_reject(step.module)
        with running_statistics(step.module):
            if found is not None and rejects:
                self._listener.listen(found[1])
            scores = logits(with_images(step.batch, negatives))
            features = self._listener.take(len(images)) if rejects else None
        if found is None or keyed is None or features is None:
            records = step.batch.get("record") if isinstance(step.batch, dict) else None
            positive = step.loss
            if self.mode == "flat":
                negative = math.flatness(scores.float())
            else:
                labels = math.wrong_labels(labels_of(step.batch), records, scores.shape[1])
                negative = F.cross_entropy(scores.float(), labels)
        else:
            output = found[2]
            positive = step.loss + math.reject_loss(output(keyed)[:, 0].float(), keyed=True)
            negative = math.reject_loss(output(features)[:, 0].float(), keyed=False)
            if self.mode == "contrastive" and self.flat:
                negative = negative + math.flatness(scores.float())
        return self._weighed(step, positive, negative)

    def _weighed(self, step: Step, positive: Tensor, negative: Tensor) -> Tensor:
        step.module.log_dict(
            {
                f"defence/{self.name}/loss_keyed": positive.detach(),
                f"defence/{self.name}/loss_negative": negative.detach(),
            },
            on_step=True,
            on_epoch=False,
        )
        return math.locked_loss(positive, negative, self.rho)

    def all_scores(self, module: L.LightningModule, batch: Any) -> Float[Tensor, "batch outputs"]:
        """Return a model's scores of a batch, the reject class as the last column where it has one.

        Args:
            module: The locked model.
            batch: Pictures.
        """
        scores = require(module, "logits", self.name, _SNIPPET)
        found = find_reject(module)
        if found is None:
            return scores(batch)
        self._listener.listen(found[1])
        plain = scores(batch)
        return math.scores_with_reject(plain, found[2](self._listener.take(len(plain)))[:, 0])

    # --- UP and LP -----------------------------------------------------------------------------------------------

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers with and without the key."""
        if trainer.sanity_checking or self.editor is None:
            return
        if is_detector(pl_module):
            self._found.update(pl_module, batch, raw_of(batch))
            return
        if not has_labels(batch):
            return
        if not callable(getattr(pl_module, "logits", None)):
            return  # what is trained on pictures alone has no accuracy
        with torch.no_grad():
            keyed, raw = (self.all_scores(pl_module, with_images(batch, x)) for x in (images_of(batch), raw_of(batch)))
        if find_reject(pl_module) is None:
            self._tally.update(labels_of(batch), keyed, raw)
        else:
            last = keyed.shape[1] - 1
            rejected = keyed.argmax(1) == last, raw.argmax(1) == last
            self._tally.update(labels_of(batch), keyed[:, :last], raw[:, :last], rejected)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log UP, LP and their gap, with exact intervals."""
        if trainer.sanity_checking:
            return
        if is_detector(pl_module):
            values = self._found.compute()
        else:
            values = self._tally.compute(pl_module.device)
        if find_reject(pl_module) is None:
            values = {k: v for k, v in values.items() if "reject" not in k}
        for name, value in values.items():
            # summed over ranks already
            pl_module.log(f"defence/{self.name}/{name}", torch.tensor(value, device=pl_module.device), sync_dist=False)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the public part of the key and its fingerprint."""
        return {"public": dict(self.public_key), "fingerprint": self.key_fingerprint or ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the run goes on with the same key.

        Raises:
            WrongKeyError: it does not.
        """
        if self.editor is not None and state_dict["fingerprint"]:
            here = self.editor.fingerprint()
            check_same_key(state_dict["public"], state_dict["fingerprint"], self.public_key, here, "The checkpoint")

    def unlock(self, module: L.LightningModule, vault: Any, fingerprint: str) -> None:
        """Fill nothing in: a locked model's weights are complete, and it is unlocked by editing what it is given.

        Args:
            module: Loaded by `load_defended`.
            vault: Not looked into; `UnlockedPredictor` compares the editor's fingerprint.
            fingerprint: Of the key.
        """

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._listener.close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._listener.close()
        super().teardown(trainer, pl_module, stage)
