"""Where an audit's results go: the run's folder, the loggers, the trainer's metrics."""

from collections.abc import Mapping, Sequence

import lightning.pytorch as L
import torch

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder

__all__ = ["append_results", "chart_values", "log_after_fit"]


def append_results(trainer: L.Trainer, results: Sequence[AttackResult]) -> None:
    """Append results to the run's folder, on rank zero."""
    if trainer.is_global_zero:
        folder = RunFolder(trainer.default_root_dir)
        for result in results:
            folder.append_result(result)


def chart_values(results: Sequence[AttackResult]) -> dict[str, float]:
    """Return what loggers draw, by ``attack/<family>/<attack>/<metric>``; what is not valid stands in the file alone."""
    return {
        f"attack/{r.family}/{r.attack}/{name}": metric.value
        for r in results
        for name, metric in r.metrics.items()
        if metric.valid
    }


def log_after_fit(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Log when training has ended and a module's own `log` is closed."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)
