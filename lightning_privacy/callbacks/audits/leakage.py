"""The leakage audit as a callback."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import lightning.pytorch as L

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.update import LocalTraining, Mode
from lightning_privacy.attacks.leakage.update_defence import UpdateDefence
from lightning_privacy.callbacks.audits.evidence import defences_of
from lightning_privacy.callbacks.audits.inversion_pictures import AUX
from lightning_privacy.callbacks.audits.leakage_attacks import (
    DEFAULT_ATTACKS,
    NEED_LOCK,
    build_leakage_attacks,
    informed_attacks_of,
)
from lightning_privacy.callbacks.audits.leakage_audit import LeakagePlan, audit_leakage
from lightning_privacy.callbacks.audits.leakage_conditions import CONTROLS, DEFENDED, KNOWN_LOCK, UNDEFENDED, Sharing
from lightning_privacy.callbacks.audits.leakage_grid import save_leakage_sheets
from lightning_privacy.callbacks.audits.leakage_pictures import VICTIM_ROLE
from lightning_privacy.callbacks.audits.leakage_sentences import objective_notes
from lightning_privacy.callbacks.audits.leakage_tables import STRONGEST
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.publishing import log_after_fit
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.stack import DefenceStack
from lightning_privacy.errors import InputError, MissingProtocolError

__all__ = ["LeakageAudit"]

_FEWEST = 2  # an interval needs two


class LeakageAudit(ResultAudit):
    """Reconstruct training records from the update that a federated client would share of them.

    A copy of the module is the client: it computes the gradient, or the weight difference of a few local steps, that the
    module's own loss gives on a few training records (role ``member``), without augmentation and dropout. What the run's
    defences withhold or change is withheld and changed. Attackers get the update and the public part of the model; which of
    them is the strongest is decided by how well a reconstruction explains the update, never by the records. Controls run
    beside it: an attacker who knows the secrets, the same network with an ordinary norm, the update before defences.
    Untrained networks leak more than trained ones, so that both are audited. Results go to ``results.jsonl`` as
    ``<initial or trained>/batch<records>/<defended, undefended or a control>/<attack>``, values to the loggers as
    ``attack/leakage/...``, sheets of reconstructions to ``pictures`` and the loggers.

    Args:
        attacks: Names of attacks; if not given, those that read labels and features off, two searches, and where there
            are secrets those that guess, search for and regress them. Attacks that know the run's defences always run.
        attack_args: Arguments by attack, such as ``{dlg: {evaluations: 2000, restarts: 8}}``; extending attacks
            (``joint``, ``wrong_key``, ``known_lock``) use those of the search that they extend.
        victims: Updates attacked a batch size, at least 2; intervals need 8.
        batch_sizes: Records behind an update.
        update: ``gradient`` of one batch, or ``difference`` of the weights after local steps of plain SGD.
        local_steps: Steps behind a difference.
        local_rate: Their learning rate.
        local_batch_size: Records a local step, at most; all of them if not given.
        mode: Whether the client's normalisation layers use the batch's own statistics (``train``) or running ones.
        shares_statistics: Whether the running statistics of batch normalisation after the step are shared too.
        knows_labels: Whether the attacker is told the records' classes.
        controls: Of ``known_secrets``, ``ordinary_norm`` and ``plain_update``; all that mean something for the run if not
            given.
        at_start: Audit before the first step too.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        grid: Pictures on the sheets of reconstructions; 0 for none. They show training pictures to whoever sees the run.
        seed: Of the attackers, the choice of victims, what defences draw, and the bootstrap.
        bootstrap: Resamples behind each 95 % interval.

    Raises:
        InputError: an unknown attack, control or argument, or a number out of range.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module has no ``logits``.
    """

    def __init__(
        self,
        attacks: list[str] | None = None,
        attack_args: dict[str, dict[str, Any]] | None = None,
        victims: int = 8,  # chosen here: as few as an interval over victims stands
        batch_sizes: list[int] | None = None,
        update: Literal["gradient", "difference"] = "gradient",
        local_steps: int = 4,
        local_rate: float | int = 0.1,
        local_batch_size: int | None = None,
        mode: Mode = "train",
        shares_statistics: bool = False,
        knows_labels: bool = False,
        controls: list[str] | None = None,
        at_start: bool = True,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        grid: int = 8,
        seed: int = 0,
        bootstrap: int = 2000,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        strange = [name for name in controls or [] if name not in CONTROLS]
        if strange or update not in ("gradient", "difference") or mode not in get_args(Mode):
            raise InputError(
                f"LeakageAudit knows no control {strange}, or not `update` {update!r} or `mode` {mode!r}; controls are "
                f"{', '.join(CONTROLS)}, updates gradient and difference, modes train and eval."
            )
        sizes = batch_sizes if batch_sizes is not None else [1]
        if victims < _FEWEST or not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise InputError(
                f"LeakageAudit needs victims >= {_FEWEST} and batch sizes of at least one record, each named once, but got "
                f"{victims=} and batch_sizes={sizes}."
            )
        if local_steps < 1 or local_rate <= 0 or (local_batch_size or 1) < 1 or grid < 0 or bootstrap < 1:
            raise InputError(
                "LeakageAudit needs local_steps >= 1, local_rate > 0, local_batch_size >= 1, grid >= 0 and bootstrap >= 1, "
                f"but got {local_steps}, {local_rate}, {local_batch_size}, {grid} and {bootstrap}."
            )
        if shares_statistics and (update == "difference" or mode == "eval"):
            raise InputError(
                "LeakageAudit(shares_statistics=True): running statistics are matched after one gradient in mode train "
                "only; set `update: gradient` and `mode: train`, or leave it out."
            )
        self.attacks, self.attack_args, self.victims, self.batch_sizes = attacks, attack_args, victims, batch_sizes
        if not build_leakage_attacks(self._names(()), attack_args):
            raise InputError("LeakageAudit: name at least one attack that reconstructs pictures, such as `dlg`.")
        self.update: Literal["gradient", "difference"] = update
        self.local_steps, self.local_rate, self.local_batch_size = local_steps, local_rate, local_batch_size
        self.mode: Mode = mode
        self.shares_statistics, self.knows_labels = shares_statistics, knows_labels
        self.controls, self.at_start = controls, at_start
        self.grid, self.seed, self.bootstrap = grid, seed, bootstrap
        self._sizes = tuple(sizes)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing of data and module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "LeakageAudit"), [AUX, VICTIM_ROLE], "LeakageAudit")
            if not callable(getattr(pl_module, "logits", None)):
                raise MissingProtocolError(
                    f"LeakageAudit needs `{type(pl_module).__name__}.logits(batch)`, one row of class scores a picture; "
                    "add it."
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Audit the model before its first step; a run that goes on has none."""
        if self.at_start and trainer.global_step == 0:
            log_after_fit(trainer, self.charted(self._run(trainer, pl_module, 0, final=False)))

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Attack the updates of the victims under every condition."""
        defences = defences_of(trainer)
        ordered = DefenceStack.of(trainer).defences if defences else []
        knowing = informed_attacks_of(defences, self._search())
        names = self._names(knowing.registered)
        changing = [d for d in ordered if isinstance(d, UpdateDefence)]
        plan = LeakagePlan(
            attacks=lambda: build_leakage_attacks(names, self.attack_args),
            informed=lambda records: self._informed(defences, records),
            fallback={"dlg": self._search()},
            victims=self.victims,
            batch_sizes=self._sizes,
            sharing=Sharing(
                self.mode,
                self._local if self.update == "difference" else None,
                self.shares_statistics,
                self.knows_labels,
            ),
            controls=(
                *(CONTROLS if self.controls is None else self.controls),
                *([KNOWN_LOCK] if NEED_LOCK & set(names) else []),
            ),
            update_defences=tuple(changing),
            defended=bool(defences),
            seed=self.seed,
            bootstrap=self.bootstrap,
            shown=self.grid,
        )
        # A defence that clips each record's loss is an update defence: its part of the objective is in the update.
        lossy = [d.name for d in ordered if Slot.OBJECTIVE in d.slots and d not in changing]
        about = AuditedModel(
            trainer.global_step,
            epoch,
            tuple(defence.name for defence in defences),
            (*knowing.notes, *objective_notes(lossy)),
        )
        state = "trained" if trainer.global_step else "initial"
        results, sheets = audit_leakage(module, find_split(trainer, "LeakageAudit"), plan, state, about)
        if trainer.is_global_zero and self.grid:
            save_leakage_sheets(trainer, sheets, epoch)
        return results

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the results that tell whether an audit has been done."""
        state = "trained" if trainer.global_step else "initial"
        condition = DEFENDED if defences_of(trainer) else UNDEFENDED
        return {f"{state}/batch{size}/{condition}/{STRONGEST}" for size in self._sizes}

    def _names(self, knowing: tuple[str, ...]) -> list[str]:
        names = list(DEFAULT_ATTACKS if self.attacks is None else self.attacks)
        return [*names, *(name for name in knowing if name not in names)]

    def _search(self) -> Any:
        return build_leakage_attacks(["dlg"], self.attack_args)["dlg"]

    def _informed(self, defences: list[Defence], records: int) -> Mapping[str, LeakageAttack]:
        return informed_attacks_of(defences, self._search(), records).own

    def _local(self, records: int) -> LocalTraining:
        return LocalTraining(self.local_steps, self.local_rate, min(records, self.local_batch_size or records))
