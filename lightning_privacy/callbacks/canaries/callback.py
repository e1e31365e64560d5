"""The audit of planted canaries as a callback: a lower bound on epsilon from one training run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from lightning_privacy.attacks.membership.registry import build_attack
from lightning_privacy.attacks.structural.canary_guesses import SHARES
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.callbacks.canaries.canary_audit import FIT_ROLES, audit_canaries, chosen_attacks, needs_fit
from lightning_privacy.core.results import AttackResult, MembershipAttack
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, SplitError

__all__ = ["CanaryAudit"]


def _written(path: Path) -> str | None:
    return json.loads(path.read_text(encoding="utf-8")).get("split_hash") if path.is_file() else None


class CanaryAudit(ResultAudit):
    """Guess which planted canaries were trained on, and bound epsilon from below by how often that succeeds.

    Needs `CanaryData` around the `MembershipSplit`. The canaries with the most and least member-like scores are
    guessed, the others abstained from; results of family ``canary`` go to ``results.jsonl`` and the loggers, the coins
    to ``canaries.json``. Weights, statistics, mode and random state are as before.

    Args:
        attacks: Names of membership attacks whose scores are used; the loss (relative to the model before fine-tuning
            where the module offers that) if not given. Fix them beforehand: the bound is corrected for their number.
        every_n_epochs: Audit at the end of every so many epochs too; the 95 % are those of one audit.
        at_end: Audit when training ends.
        shares: Shares of the canaries that are guessed; the bound is the best of them, corrected for their number.
        delta: Of (epsilon, delta).
        draws: Noises at each timestep, for a module with draws.
        timesteps: Diffusion steps at which errors are measured; ten over the module's schedule if not given.
        seed: Seed of draws, attackers, ties and bootstrap.
        bootstrap: Resamples behind the interval of the AUROC.
        batch_size: Records at once; the datamodule's own if not given.
        error_fn: Import path of a function (module, batch, draw) -> error of each sample, for a module without
            ``per_sample_error``.

    Raises:
        InputError: an attack is unknown, or a number is out of range.
        SplitError: at the start of training, where there are no canaries, or the run's folder holds others.
        MissingProtocolError: at the start of training, where the module lacks what an attack needs.
    """

    family = "canary"

    def __init__(
        self,
        attacks: list[str] | None = None,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        shares: list[float] | None = None,
        delta: float | int = 1e-5,  # what DP-SGD is usually stated at; 0 audits pure differential privacy
        draws: int = 2,
        timesteps: list[int] | None = None,
        seed: int = 0,
        bootstrap: int = 2000,
        batch_size: int | None = None,
        error_fn: str | Any | None = None,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        for name in attacks or []:
            build_attack(name)
        numbers = draws >= 1 and bootstrap >= 0 and 0 <= delta < 1 and timesteps != []
        if not numbers or attacks == [] or shares == [] or any(not 0 < each <= 1 for each in shares or []):
            raise InputError(
                "CanaryAudit needs at least one attack, draws >= 1, bootstrap >= 0, delta in [0, 1) "
                f"and shares in (0, 1], but got {attacks=}, {draws=}, {bootstrap=}, {timesteps=}, "
                f"{delta=}, {shares=}."
            )
        self.attacks, self.shares, self.delta = attacks, shares, delta
        self.draws, self.timesteps, self.seed, self.bootstrap = draws, timesteps, seed, bootstrap
        self.batch_size, self.error_fn = batch_size, error_fn
        self.extra_attacks: Sequence[MembershipAttack] = ()
        """Further attack objects, for use from Python."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._data(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the module's protocols, and write the coins into the run's folder before anything is trained."""
        data = self._data(trainer)
        if any(map(needs_fit, chosen_attacks(self._attacks(), pl_module, self.error_fn))):
            check_roles(data, FIT_ROLES, "CanaryAudit with an attack that learns or calibrates")
        path = RunFolder(trainer.default_root_dir).path / "canaries.json"
        # all ranks decide alike before rank zero writes
        there = trainer.strategy.broadcast(_written(path))
        if there not in (None, data.canary_hash):
            raise SplitError(
                f"{path} holds the canaries {there[:12]}, this run's are {data.canary_hash[:12]}: other coins decided. "
                "Give this run a folder of its own, or use that run's count, kind and seed."
            )
        if trainer.is_global_zero and there is None:
            data.write_canaries(path)

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Guess the coins."""
        return audit_canaries(
            module,
            self._data(trainer),
            self._attacks(),
            shares=self.shares or SHARES,
            delta=self.delta,
            timesteps=self.timesteps,
            draws=self.draws,
            seed=self.seed,
            bootstrap=self.bootstrap,
            batch_size=self.batch_size,
            error_fn=self.error_fn,
            model=AuditedModel(trainer.global_step, epoch),
        )

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the attacks that `audit` would run."""
        return {attack.name for attack in chosen_attacks(self._attacks(), module, self.error_fn)}

    def _attacks(self) -> Sequence[str | MembershipAttack] | None:
        return [*(self.attacks or []), *self.extra_attacks] or None

    def _data(self, trainer: L.Trainer) -> Any:
        found = find_split(trainer, "CanaryAudit")
        if not all(hasattr(found, name) for name in ("coins", "canary_hash", "write_canaries")):
            raise SplitError(
                f"CanaryAudit needs planted canaries, but the datamodule is a {type(found).__name__}. Wrap it: "
                "CanaryData(MembershipSplit(YourData()))."
            )
        return found
