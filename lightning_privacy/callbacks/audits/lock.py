"""The lock audit as a callback."""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.attacks.lock.finetuning import Scratch
from lightning_privacy.attacks.lock.registry import ATTACKS
from lightning_privacy.attacks.lock.target import LockAttack
from lightning_privacy.callbacks.audits.evidence import defences_of
from lightning_privacy.callbacks.audits.inversion_target import batch_like, frozen
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.lock_audit import REFERENCE, STRONGEST, LockPlan, attack_lock, locked_model
from lightning_privacy.callbacks.audits.lock_guesses import guesses_for
from lightning_privacy.callbacks.audits.lock_pictures import AUX, SCORED, LockPictures, read_lock_pictures
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split, role_indices
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.callbacks.quality.grids import save_grid
from lightning_privacy.core.results import AttackResult
from lightning_privacy.datamodules.locked import LockedDataModule, find_locked
from lightning_privacy.editors.editor import Editor
from lightning_privacy.errors import InputError, MissingProtocolError, NoEffectError

__all__ = ["LockAudit"]

_GUESSES = ("wrong_prompt", "wrong_seed", "empty_prompt", "prompt_dictionary", "other_editor")
_BY_COUNT = ("fine_tune", "head_tune", "weight_layout")
_ALL = (*ATTACKS, *_GUESSES)


class LockAudit(ResultAudit):
    """Use a locked model without its key in every way we know, and say how often each is right.

    The attacker has the model, some pictures of its own (role ``attack_nonmember``), edits of some of them as the model's use
    may have shown them, and the editor, but not the key. It leaves a reject class out. All its choices, the strongest attack
    among them, are made on pictures of its own; each attack is then scored once on ``holdout``, beside UP (the accuracy with
    the key), chance, and the same network trained without the stolen weights. What each reaches on ``val`` stands beside
    it, for choices among several models. Results go to ``results.jsonl`` as ``lock`` and ``lock_reference``, values to the
    loggers, a sheet of what the model was shown to ``pictures``. Of the key they hold nothing.

    Args:
        attacks: Of ``no_key`` (its accuracy is LP), ``mean_residual``, ``value_order``, ``block_map``, ``score_map``,
            ``pair_unlocker``, ``label_unlocker``, ``fine_tune``, ``head_tune``, ``weight_layout``, ``distillation``,
            ``wrong_prompt``, ``wrong_seed``, ``empty_prompt``, ``prompt_dictionary`` (the 70 published ones) and
            ``other_editor``; all that apply if not given.
        attack_args: Arguments by attack, such as ``{pair_unlocker: {steps: 1000}}``.
        shares: Numbers of labelled pictures for ``fine_tune``, ``head_tune`` and ``weight_layout``, as shares of the training
            set, at most what the attacker has. Results are named by the number, such as ``fine_tune/64_labels``.
        other_editor: An editor without a key, built by class path; tried with the right prompt.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        grid: Whether a sheet is written; it shows held-out pictures to whoever sees the run.
        seed: Of the attacks.

    Raises:
        InputError: an unknown attack or argument, or a share that is none.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        NoEffectError: at the start of training, where no `LockedDataModule` edits the pictures.
        MissingProtocolError: at the start of training, where the module has no ``logits``.
    """

    def __init__(
        self,
        attacks: list[str] | None = None,
        attack_args: dict[str, dict[str, Any]] | None = None,
        shares: list[float] | None = None,
        other_editor: Editor | None = None,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        grid: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        strange = [name for name in [*(attacks or []), *(attack_args or {})] if name not in _ALL]
        if strange:
            raise InputError(f"LockAudit knows no attack `{strange[0]}`; there are {', '.join(_ALL)}.")
        if any(not 0 < share <= 1 for share in shares or []):
            raise InputError(
                f"LockAudit: `shares` are {shares}; each is a share of the training set, above 0, at most 1."
            )
        self.attacks, self.attack_args, self.shares = attacks, attack_args, shares
        self.other_editor, self.grid, self.seed = other_editor, grid, seed
        self._trained()

    def _trained(self) -> dict[str, LockAttack]:
        given, made = self.attack_args or {}, {}
        for name in ATTACKS:
            if self.attacks is not None and name not in self.attacks:
                continue
            try:
                made[name] = ATTACKS[name](**given.get(name, {}))
            except TypeError as unknown:
                raise InputError(f"LockAudit: the attack `{name}` does not take {given[name]}: {unknown}.") from unknown
        return made

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing of data and module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "LockAudit"), [AUX, SCORED], "LockAudit")
            self._locked(trainer)
            if not callable(getattr(pl_module, "logits", None)):
                raise MissingProtocolError(
                    f"LockAudit needs `{type(pl_module).__name__}.logits(batch)`, one row of class scores a picture; add it. "
                    "A detector's lock is audited by `detection_lock`."
                )

    def _locked(self, trainer: L.Trainer) -> LockedDataModule:
        found = find_locked(getattr(trainer, "datamodule", None))
        if found is None:
            raise NoEffectError(
                "LockAudit: nobody edits these pictures, so that there is no lock to attack. Wrap the data in "
                "`LockedDataModule(inner, editor)`, inside `MembershipSplit`."
            )
        return found

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Attack the model on rank zero; every rank gets the results."""
        split, locked = find_split(trainer, "LockAudit"), self._locked(trainer)
        defences = defences_of(trainer)
        notes = () if any(d.name == "model_lock" for d in defences) else ("No lock was trained into this model.",)
        about = AuditedModel(trainer.global_step, epoch, tuple(d.name for d in defences), notes)
        with isolate_rng(), torch.inference_mode(False), torch.enable_grad(), frozen(module):
            pictures = read_lock_pictures(module, split, locked, self.seed)
            results, shown = on_rank_zero(lambda: self._attack(module, split, locked, pictures, about))
        if trainer.is_global_zero and self.grid:
            self._save(trainer, pictures, shown, epoch)
        return results

    def _attack(
        self,
        module: L.LightningModule,
        split: Any,
        locked: LockedDataModule,
        pictures: LockPictures,
        about: AuditedModel,
    ) -> tuple[list[AttackResult], dict[str, Any]]:
        with torch.no_grad():
            classes = module.logits(batch_like(pictures.template, pictures.raw[:1])).shape[1]  # pyright: ignore[reportCallIssue]
        trained = self._trained()
        wanted = tuple(name for name in _GUESSES if self.attacks is None or name in self.attacks)
        editor = locked.editor
        guesses = guesses_for(editor, wanted, self.other_editor) if isinstance(editor, Editor) else []
        plan = LockPlan(
            [attack for name, attack in trained.items() if name not in _BY_COUNT] + guesses,
            [attack for name, attack in trained.items() if name in _BY_COUNT],
            self.shares if self.shares is not None else (0.01, 0.05, 0.1, 0.5),
            Scratch(**(self.attack_args or {}).get("fine_tune", {})),  # as many steps as with the stolen weights
            len(role_indices(split, "member")),
            self.seed,
        )
        return attack_lock(locked_model(module, pictures.template, classes), pictures, plan, about, split.split_hash)

    def _save(self, trainer: L.Trainer, pictures: LockPictures, shown: dict[str, Any], epoch: int) -> None:
        rows = [pictures.raw[:8], pictures.keyed[:8], *(x.to(pictures.raw) for x in shown.values())]
        sheet = torch.cat([row.expand(-1, 3, -1, -1) if row.shape[1] == 1 else row[:, :3] for row in rows])
        save_grid(trainer, sheet, f"lock-epoch-{epoch:04d}", columns=len(rows[0]), key="attack/lock/pictures")

    def charted(self, results: Any) -> dict[str, float]:
        """Return what the loggers draw: every attack's accuracy, and UP."""
        drawn = super().charted([r for r in results if r.family != REFERENCE])
        up = next((r.metrics["accuracy"].value for r in results if r.attack == "with_key"), None)
        return drawn if up is None else {**drawn, "attack/lock/with_key/accuracy": up}

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the results that tell whether an audit has been done."""
        return {STRONGEST}
