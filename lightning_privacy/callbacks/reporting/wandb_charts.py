"""What W&B shows beside scalars and pictures: logarithmic ROC curves, defences and versions in the config."""

import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import WandbLogger

from lightning_privacy.core.conflicts import order_defences
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder

__all__ = ["WandbCharts", "package_versions", "roc_rows"]

_PACKAGES = ("lightning-privacy", "torch", "lightning", "diffusers", "peft", "transformers", "torchmetrics")
_LEAST_RATE = 1e-3
"""Rates below this are drawn at it: a logarithmic axis has no zero."""


class WandbCharts(L.Callback):
    """Logs to W&B the ROC curves that audits left in the run's folder; does nothing where no W&B logger is.

    The folder stays the source: every new line of results.jsonl becomes a ROC (a table of at most 200 points and a
    chart of log10 rates). Pictures are logged by who makes them.
    """

    def __init__(self) -> None:
        self._seen_results: set[tuple[str, str, int]] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the resolved defences and the package versions into the run's config; note what is already there."""
        run = RunFolder(trainer.default_root_dir)
        self._seen_results = {_key(r) for r in run.results()} if trainer.is_global_zero else set()
        for logger in _loggers(trainer):
            logger.log_hyperparams({"defences": defences_in_order(trainer), "versions": package_versions()})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what is new."""
        if not trainer.sanity_checking:
            self._log_new(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what is new."""
        self._log_new(trainer)

    def _log_new(self, trainer: L.Trainer) -> None:
        loggers = _loggers(trainer)
        if not loggers:
            return
        run = RunFolder(trainer.default_root_dir)
        new = [r for r in run.results() if r.roc and _key(r) not in self._seen_results]
        self._seen_results |= {_key(r) for r in new}
        for family in sorted({r.family for r in new}):
            for logger in loggers:
                log_roc(logger, family, [r for r in new if r.family == family])


def log_roc(logger: WandbLogger, family: str, results: list[AttackResult]) -> None:
    """Log one family's ROC curves as a table and as a chart with logarithmic rates.

    W&B's own curves have linear axes, where the low rates that matter cannot be seen, and its custom charts need a
    network; hence the logarithms are taken here.
    """
    import wandb

    rows = [[r.attack, *point] for r in results for point in roc_rows(r)]
    columns = ["attack", "false_positive_rate", "true_positive_rate"]
    logger.log_table(key=f"attack/{family}/roc_table", columns=columns, data=rows)
    chart = wandb.plot.line_series(
        xs=[[math.log10(x) for x, _ in roc_rows(r)] for r in results],
        ys=[[math.log10(y) for _, y in roc_rows(r)] for r in results],
        keys=[r.attack for r in results],
        title=f"{family}: log10 true-positive rate",
        xname="log10 false-positive rate",
    )
    logger.experiment.log({f"attack/{family}/roc": chart})


def roc_rows(result: AttackResult) -> list[tuple[float, float]]:
    """Return a ROC's points for logarithmic axes: rates from 0.001 up, at most 200 of them."""
    points = [(max(x, _LEAST_RATE), max(y, _LEAST_RATE)) for x, y in result.roc]
    stride = -(-len(points) // 200) or 1
    return points[::stride]


def defences_in_order(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Return name and plain arguments of the trainer's defences, in the order in which they act."""
    plain = (str, int, float, bool, type(None))
    defences = [c for c in trainer.callbacks if isinstance(c, Defence)]  # pyright: ignore[reportAttributeAccessIssue]
    return [
        {"name": d.name, **{k: v if isinstance(v, plain) else str(v) for k, v in d.init_args.items()}}
        for d in order_defences(defences)
    ]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a run's numbers; absent ones are left out."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _loggers(trainer: L.Trainer) -> list[WandbLogger]:
    return [x for x in trainer.loggers if isinstance(x, WandbLogger)] if trainer.is_global_zero else []


def _key(result: AttackResult) -> tuple[str, str, int]:
    return (result.family, result.attack, result.step)
