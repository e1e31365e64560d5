"""What the verb audit does once the trainer has put the model in place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.callbacks.reporting.run_files import RunFiles
from lightning_privacy.cli.foreign_checkpoint import is_lightning, load_weights
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, SplitError

__all__ = ["Auditor"]

_SHOWN = {"auroc": "AUROC", "member_minus_nonmember": "members minus others"}
"""The number that stands for a result in its line: the first of these that it has, in words."""
_UNVERIFIED = (
    "The checkpoint does not say on which records it was trained: who is a member is what the configuration claims. Where "
    "the claim is wrong, so are these numbers."
)


class Auditor(L.Callback):
    """Runs audits at the start of a validation, that is, with the trained model on its device.

    Args:
        audits: Audits by name; each has ``audit`` or ``measure`` of (trainer, module, epoch).
        folder: The run's folder.
        checkpoint: What is attacked; None for an adapter.
        saved: The checkpoint's content; bare weights are loaded from it here, a Trainer's checkpoint by the trainer.
        again: Whether to repeat audits whose results are there.
        shadows_only: (part, parts): train this part of the shadow models and attack nothing; None for whole audits.
        epochs: For how many epochs the configuration says that the model was trained, where the checkpoint does not.
        keep: Called on rank zero once every audit has accepted the model and nothing was written yet.
    """

    def __init__(
        self,
        audits: Mapping[str, L.Callback],
        folder: RunFolder,
        checkpoint: Path | None,
        saved: Mapping[str, Any],
        *,
        again: bool,
        shadows_only: tuple[int, int] | None = None,
        epochs: int | None = None,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.audits, self.folder, self.checkpoint, self.saved, self.again = audits, folder, checkpoint, saved, again
        self.shadows_only, self.epochs, self.keep = shadows_only, epochs, keep
        self.lines: list[str] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the split, restore the step, then audit."""
        known = self._check_split(trainer)
        if self.checkpoint is not None and not is_lightning(self.saved):
            load_weights(pl_module, self.saved, self.checkpoint)
        epoch = _restore_progress(trainer, self.saved, self.epochs)
        if epoch < 1 and any(getattr(audit, "shadows", 0) for audit in self.audits.values()):
            raise InputError(
                "The checkpoint does not say for how many epochs the model was trained, and shadow models must be "
                "trained as long: give --trainer.max_epochs N."
            )
        if self.shadows_only is not None:
            self._train_shadows(trainer, epoch, self.shadows_only)
            return
        chosen = trainer.strategy.broadcast(
            [n for n, a in self.audits.items() if self._wants(n, a, trainer, pl_module)]
        )
        for name in chosen:
            # what it checks and builds when training starts
            self.audits[name].setup(trainer, pl_module, "fit")
            self.audits[name].on_fit_start(trainer, pl_module)
        RunFiles().on_fit_start(trainer, pl_module)
        if trainer.is_global_zero:
            self.keep()
        for name in chosen:
            audit: Any = self.audits[name]
            if not known:
                audit.remarks = (_UNVERIFIED,)
            with torch.enable_grad():
                results = audit.audit(trainer, pl_module, epoch)
            self.lines += [f"{name}: {line}" for line in _summary(results)] or [f"{name}: done"]

    def _wants(self, name: str, audit: Any, trainer: L.Trainer, module: L.LightningModule) -> bool:
        if not callable(getattr(audit, "audit", None)):
            raise InputError(f"The audit `{name}` runs in training only: it has no `audit(trainer, module, epoch)`.")
        wanted, present = _wanted(audit, trainer, module), self._present(name, audit, trainer.global_step)
        return self.again or not present or not (wanted is None or wanted <= present)

    def _train_shadows(self, trainer: L.Trainer, epoch: int, share: tuple[int, int]) -> None:
        pools = {n: a.shadow_pool(trainer, epoch) for n, a in self.audits.items() if getattr(a, "shadows", 0)}  # pyright: ignore[reportAttributeAccessIssue]
        if not pools:
            raise InputError(
                "No audit of this run has shadow models; give one, such as --audits.membership.shadows 16."
            )
        for name, pool in pools.items():
            with isolate_rng(), torch.enable_grad():
                pool.train(share=share)
            self.lines.append(f"{name}: shadow models {share[0]} modulo {share[1]} of {pool.count} are there")

    def _check_split(self, trainer: L.Trainer) -> bool:
        """Return whether the checkpoint names its split, which then is the configuration's."""
        now = getattr(trainer.datamodule, "split_hash", None)  # pyright: ignore[reportAttributeAccessIssue]
        states = [state for state in self.saved.values() if isinstance(state, dict)]
        then = next((s["split_hash"] for s in states if s.get("split_hash")), None)
        if now is not None and then is not None and then != now:
            raise SplitError(
                f"The checkpoint {self.checkpoint} was trained on split {then[:12]}, the configuration makes split "
                f"{now[:12]}: members would be counted as non-members. Audit with the run's own data, split_seed and "
                "fractions, without overriding them."
            )
        ours = self.folder.split.is_file() and not self.folder.foreign.is_file()
        return then is not None or ours

    def _present(self, name: str, audit: L.Callback, step: int) -> set[str]:
        family = getattr(audit, "family", name)
        attacks = {r.attack for r in self.folder.results() if r.family == family and r.step == step}
        return attacks | {m["name"] for m in self.folder.measurements() if m["kind"] == name and m["step"] == step}


def _wanted(audit: Any, trainer: L.Trainer, module: L.LightningModule) -> set[str] | None:
    """Return the names of results that an audit would write, or None where it does not say."""
    names = getattr(audit, "result_names", None)
    if callable(names):
        return set(names(trainer, module))  # pyright: ignore[reportArgumentType]
    listed = getattr(audit, "attacks", None) or getattr(audit, "metrics", None)
    return set(listed) if listed and all(isinstance(x, str) for x in listed) else None


def _restore_progress(trainer: L.Trainer, saved: Mapping[str, Any], epochs: int | None) -> int:
    """Give the trainer the checkpoint's step count, which validation does not; return the epochs completed.

    Args:
        trainer: Which will then know the step.
        saved: The checkpoint.
        epochs: What the configuration says, for checkpoints that do not.
    """
    claimed = epochs if epochs is not None and epochs > 0 else None
    loops, loop = saved.get("loops", {}).get("fit_loop"), trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    if loops is not None:
        loop.load_state_dict(loops)
        return progress.processed  # saved at an epoch's end, before it counts as completed
    if not is_lightning(saved):
        return claimed or 0
    # Weights alone: the trainer noted the step and an epoch, which is the next one where it was saved after training.
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = saved["global_step"]
    return min(saved["epoch"] + 1, claimed or saved["epoch"] + 1)


def _summary(results: Any) -> list[str]:
    lines = []
    for r in results if isinstance(results, list) else []:
        if isinstance(r, dict) and {"name", "value"} <= set(r):
            lines.append(f"{r['name']:24} {'-' if r['value'] is None else format(r['value'], '.4g')}")
        if not isinstance(r, AttackResult):
            continue
        shown = next((name for name in _SHOWN if name in r.metrics), None)
        number = "done" if shown is None else f"{_SHOWN[shown]} {_with_ends(r.metrics[shown])}"
        lines.append(f"{r.attack:24} {number}{'  <- strongest on fit data' if r.strongest else ''}")
    return lines


def _with_ends(metric: Metric) -> str:
    return f"{metric.value:.3f} [{_end(metric.low)}, {_end(metric.high)}]"


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
