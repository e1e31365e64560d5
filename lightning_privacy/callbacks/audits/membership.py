"""The membership audit as a callback."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L

from lightning_privacy.attacks.membership.registry import build_attack
from lightning_privacy.callbacks.audits.boundary_signals import BOUNDARY_QUERIES
from lightning_privacy.callbacks.audits.evidence import adaptive_attacks, defences_of
from lightning_privacy.callbacks.audits.exposed_records import check_exposed_records, log_exposed_records
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import (
    ROLES,
    AuditedModel,
    audit_membership,
    choose_attacks,
)
from lightning_privacy.callbacks.audits.publishing import chart_values
from lightning_privacy.callbacks.audits.shadow_signals import SHADOW_FIELDS
from lightning_privacy.callbacks.audits.shadow_training import (
    check_count,
    resolve_build,
    shadow_pool,
    train_and_observe,
)
from lightning_privacy.callbacks.audits.signals import ReferenceCache, available_signals, missing_signals
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.core.results import AttackResult, MembershipAttack
from lightning_privacy.errors import InputError

__all__ = ["MembershipAudit", "audit_membership"]


class MembershipAudit(ResultAudit):
    """Attack the model to tell who was in its training set, during and after training.

    Attacks are fitted on ``aux_member`` against ``attack_nonmember`` of the trainer's `MembershipSplit` and judged on
    members and non-members that neither the defence nor the attacker has fitted on. Results go to ``results.jsonl`` in
    the run's folder and, as ``attack/membership/<attack>/<metric>``, to the loggers; which of them are valid stands in
    the file alone. The attacks that the run's defences name as adaptive run as well. Weights, statistics, mode and
    random state are as before.

    Args:
        attacks: Names of attacks; every registered one that the module allows if not given.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        draws: Noises at each timestep.
        timesteps: Diffusion steps at which errors are measured; ten over the module's
            schedule (50 to 950 of 1000) if not given.
        seed: Seed of draws, attackers and bootstrap.
        bootstrap: Resamples behind each 95 % interval.
        batch_size: Records at once; the datamodule's own if not given.
        queries: Views of each picture that a classifier is asked about: the picture, its mirror image, shifts.
        boundary_queries: Label queries a record of the attack ``boundary_distance``, which runs only where it is named.
        delta: At which each attack's lower bound on epsilon is stated, corrected for the number of attacks.
        shadows: Shadow models to train for the attacks that compare with models whose training records are known (LiRA,
            RMIA), an even number; 0 for none. They are trained as the audited model was, once training has ended, and
            kept in ``shadows`` of the run's folder. Attacks that need them run on the final model alone.
        shadow_build: Function seed -> (a new module, its defences), or its import path; from a recipe the command line
            fills it in.
        shadow_folder: Where shadow models are kept and looked for, if not in the run's folder.
        exposed: How many of the members that the strongest attack recognises best W&B shows as a table with their
            pictures, of the final model; 0 for none. It hands training pictures, of the very people whom the model
            protects least, to whoever reads the W&B project: for public data, or readers with a right to it.
        error_fn: Import path of a function (module, batch, draw) -> error of each sample, for a module without
            ``per_sample_error``.
        subgroup: Key of the batches (or place, or import path of a function of a batch) that holds each record's subgroup,
            a whole number; attacks are then judged by subgroup too, as they are by class and by loss.

    Raises:
        InputError: an attack is unknown, or a number is out of range.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module lacks what an attack needs.
    """

    def __init__(
        self,
        attacks: list[str] | None = None,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        draws: int = 2,  # chosen here: 20 errors a record; more narrows the attacks' own noise at proportional cost
        timesteps: list[int] | None = None,
        seed: int = 0,
        bootstrap: int = 2000,
        batch_size: int | None = None,
        queries: int = 1,
        boundary_queries: int = BOUNDARY_QUERIES,
        delta: float | int = 1e-5,  # what DP-SGD is usually stated at; 0 audits pure differential privacy
        shadows: int = 0,
        shadow_build: str | Any | None = None,
        shadow_folder: str | None = None,
        exposed: int = 0,  # chosen here: training pictures leave the machine only where somebody asks for it
        error_fn: str | Any | None = None,
        subgroup: str | int | Any | None = None,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        for name in attacks or []:
            build_attack(name)
        check_count(shadows)
        numbers = draws >= 1 and bootstrap >= 0 and boundary_queries >= 1 and 0 <= delta < 1
        if attacks == [] or timesteps == [] or not numbers:
            raise InputError(
                "MembershipAudit needs at least one attack, draws and boundary_queries >= 1, bootstrap "
                f">= 0, delta in [0, 1) and timesteps (or none given), but got {attacks=}, {draws=}, {boundary_queries=}, "
                f"{bootstrap=}, {delta=}, {timesteps=}."
            )
        self.attacks, self.queries, self.boundary_queries = attacks, queries, boundary_queries
        self.error_fn, self.subgroup = error_fn, subgroup
        self.draws, self.timesteps, self.seed, self.delta = draws, timesteps, seed, delta
        self.bootstrap, self.batch_size = bootstrap, batch_size
        self.shadows, self.shadow_build, self.shadow_folder = shadows, shadow_build, shadow_folder
        self.exposed = exposed
        self.extra_attacks: Sequence[MembershipAttack] = ()
        """Further attack objects, for use from Python."""
        self._cache: ReferenceCache = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._cache = {}
        check_roles(find_split(trainer, "MembershipAudit"), ROLES, "MembershipAudit")
        if self.shadows:
            resolve_build(self.shadow_build)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the module's protocols, which a mixin or ``configure_model`` may have supplied by now."""
        available = available_signals(pl_module, self.error_fn, costly=True) | self._from_shadows
        for attack in self._chosen(trainer, pl_module, self._from_shadows)[0]:
            lacking = set(attack.requires) - available
            if lacking:
                raise missing_signals(pl_module, lacking, attack.name)
        check_exposed_records(trainer, find_split(trainer, "MembershipAudit"), self.exposed)

    @property
    def final_adds(self) -> bool:
        """Whether shadow models or the table of exposed records, which the final model alone gets, are still to come."""
        return bool(self.shadows or self.exposed)

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Run the attacks, on the final model those with shadow models too, which are trained for ``epoch`` epochs."""
        shadows = final and self.shadows > 0
        attacks, notes = self._chosen(trainer, module, self._from_shadows if shadows else frozenset())
        evidence = train_and_observe(self.shadow_pool(trainer, epoch), self.queries) if shadows else None
        defences = tuple(defence.name for defence in defences_of(trainer))
        return audit_membership(
            module,
            find_split(trainer, "MembershipAudit"),
            attacks,
            timesteps=self.timesteps,
            draws=self.draws,
            seed=self.seed,
            bootstrap=self.bootstrap,
            batch_size=self.batch_size,
            error_fn=self.error_fn,
            cache=self._cache,
            queries=self.queries,
            boundary_queries=self.boundary_queries,
            delta=self.delta,
            shadows=evidence,
            subgroup=self.subgroup,
            model=AuditedModel(
                trainer.global_step, epoch, defences, notes, {"shadows": self.shadows} if shadows else None
            ),
        )

    def audit(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> list[AttackResult]:
        """Audit as every audit does, then show the most exposed records where asked to."""
        results = super().audit(trainer, module, epoch)
        split = find_split(trainer, "MembershipAudit")
        log_exposed_records(trainer, split, results, self.exposed, batch_size=self.batch_size)
        return results

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the attacks that `audit` would run."""
        return {attack.name for attack in self._chosen(trainer, module, self._from_shadows)[0]}

    @property
    def _from_shadows(self) -> frozenset[str]:
        return SHADOW_FIELDS if self.shadows else frozenset()

    def shadow_pool(self, trainer: L.Trainer, epoch: int) -> Any:
        """Return the pool of this run's shadow models, none of them trained by this call.

        Args:
            trainer: The trainer, whose datamodule is the split.
            epoch: Epochs that the shadow models are trained: those of the target.

        Raises:
            InputError: nobody says how to build them.
        """
        build = resolve_build(self.shadow_build)
        return shadow_pool(
            build,
            trainer,
            find_split(trainer, "MembershipAudit"),
            self.shadows,
            epochs=epoch,
            folder=self.shadow_folder,
            seed=self.seed,
            signature=getattr(build, "signature", ""),
        )

    def _chosen(
        self, trainer: L.Trainer, module: Any, also: frozenset[str]
    ) -> tuple[list[MembershipAttack], tuple[str, ...]]:
        chosen = choose_attacks(self.attacks, module, self.error_fn, also)
        if not also and self.shadows:  # an audit during training, which has no shadow models yet
            chosen = [attack for attack in chosen if not set(attack.requires) & SHADOW_FIELDS]
        adaptive, notes = adaptive_attacks(defences_of(trainer), available_signals(module, self.error_fn) | also)
        named = {attack.name for attack in chosen}
        more = [a for a in (*adaptive, *self.extra_attacks) if a.name not in named]
        return [*chosen, *more], notes

    def charted(self, results: Sequence[AttackResult]) -> dict[str, float]:
        """Return what the loggers draw: each attack's valid numbers, and the strongest attack's AUROC again."""
        top = next(r for r in results if r.strongest).metrics["auroc"]
        ends = {"auroc": top.value, "auroc_low": top.low, "auroc_high": top.high}
        strongest = {f"attack/membership/strongest/{k}": v for k, v in ends.items() if v is not None}
        return {**chart_values(results), **strongest}
