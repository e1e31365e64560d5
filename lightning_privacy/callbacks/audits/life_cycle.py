"""When an audit runs and where its results go; what it measures is the subclass's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as L

from lightning_privacy.callbacks.audits.publishing import append_results, chart_values, log_after_fit
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["ResultAudit"]


class ResultAudit(L.Callback, ABC):
    """An audit that ends in `AttackResult` lines: during training, when training ends, and by the verb ``audit``.

    Results go to ``results.jsonl`` in the run's folder and, where valid, to the loggers.

    Args:
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends, unless the last epoch's audit was of the same weights.

    Raises:
        InputError: ``every_n_epochs`` is below one.
    """

    def __init__(self, every_n_epochs: int | None, at_end: bool) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(
                f"{type(self).__name__}(every_n_epochs={every_n_epochs}): give at least 1, or null to audit only when "
                "training ends."
            )
        self.every_n_epochs, self.at_end = every_n_epochs, at_end
        self.last_results: list[AttackResult] = []
        self.remarks: tuple[str, ...] = ()
        """Sentences for the notes of every result, from whoever starts the audit and knows more than it does."""
        self._audited_step: int | None = None

    @abstractmethod
    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Return the results for the model as it is now; every rank calls.

        Args:
            trainer: The trainer, whose datamodule is the split.
            module: The module.
            epoch: Epochs completed.
            final: Whether no more training follows, so that what is dear may be spent.
        """

    def charted(self, results: Sequence[AttackResult]) -> dict[str, float]:
        """Return what the loggers draw of some results."""
        return chart_values(results)

    @property
    def final_adds(self) -> bool:
        """Whether the final audit measures more than the others do, and so is never a repetition."""
        return False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget what an earlier training of the same callback did."""
        if stage == "fit":
            self._audited_step = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Audit every n epochs."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs is None or epoch % self.every_n_epochs or trainer.sanity_checking:
            return
        values = self.charted(self._run(trainer, pl_module, epoch, final=False))
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Audit the final model, unless the last epoch's audit was of the same weights."""
        if self.at_end and self._audited_step != trainer.global_step:
            log_after_fit(trainer, self.charted(self.audit(trainer, pl_module, trainer.current_epoch)))

    def audit(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> list[AttackResult]:
        """Audit now and append the results to the run's folder; every rank must call.

        Args:
            trainer: The trainer, whose datamodule is the split.
            module: The module.
            epoch: Epochs completed.
        """
        return self._run(trainer, module, epoch, final=True)

    def _run(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        measured = self.measure(trainer, module, epoch, final)
        self.last_results = [replace(result, notes=(*result.notes, *self.remarks)) for result in measured]
        if final or not self.final_adds:
            self._audited_step = trainer.global_step
        append_results(trainer, self.last_results)
        return self.last_results
