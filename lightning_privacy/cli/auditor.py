"""What the verb audit does once the trainer has put the model in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, SplitError

__all__ = ["Auditor"]


class Auditor(L.Callback):
    """Runs audits at the start of a validation, that is, with the trained model on its device.

    Args:
        audits: Audits by name; each has ``audit`` or ``measure`` of (trainer, module, epoch).
        folder: The run's folder.
        checkpoint: What was loaded; None for an adapter.
        again: Whether to repeat audits whose results are there.
        shadows_only: (part, parts): train this part of the shadow models and attack nothing; None for whole audits.
    """

    def __init__(
        self,
        audits: Mapping[str, L.Callback],
        folder: RunFolder,
        checkpoint: Path | None,
        again: bool,
        shadows_only: tuple[int, int] | None = None,
    ) -> None:
        self.audits, self.folder, self.checkpoint, self.again = audits, folder, checkpoint, again
        self.shadows_only = shadows_only
        self.lines: list[str] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the split, restore the step, then audit."""
        saved = {} if self.checkpoint is None else torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self._check_split(trainer, saved)
        epoch = _restore_progress(trainer, saved)
        if self.shadows_only is not None:
            self._train_shadows(trainer, epoch, self.shadows_only)
            return
        for name, audit in self.audits.items():
            perform = getattr(audit, "audit", None)
            if not callable(perform):
                raise InputError(
                    f"The audit `{name}` runs in training only: it has no `audit(trainer, module, epoch)`."
                )
            wanted, present = _wanted(audit, trainer, pl_module), self._present(name, audit, trainer.global_step)
            if not self.again and present and (wanted is None or wanted <= present):
                continue
            # what it checks and builds when training starts
            audit.setup(trainer, pl_module, "fit")
            audit.on_fit_start(trainer, pl_module)
            with torch.enable_grad():
                results = perform(trainer, pl_module, epoch)
            self.lines += [f"{name}: {line}" for line in _summary(results)] or [f"{name}: done"]

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

    def _check_split(self, trainer: L.Trainer, saved: Mapping[str, Any]) -> None:
        now = getattr(trainer.datamodule, "split_hash", None)  # pyright: ignore[reportAttributeAccessIssue]
        states = [state for state in saved.values() if isinstance(state, dict)]
        then = next((s["split_hash"] for s in states if s.get("split_hash")), None)
        if now is not None and then is not None and then != now:
            raise SplitError(
                f"The checkpoint {self.checkpoint} was trained on split {then[:12]}, the configuration makes split "
                f"{now[:12]}: members would be counted as non-members. Audit with the run's own data, split_seed and "
                "fractions, without overriding them."
            )

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


def _restore_progress(trainer: L.Trainer, saved: Mapping[str, Any]) -> int:
    """Give the trainer the checkpoint's step count, which validation does not; return the epochs completed."""
    loops = saved.get("loops", {}).get("fit_loop")
    if loops is not None:
        trainer.fit_loop.load_state_dict(loops)
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.processed  # saved at an epoch's end, before it counts as completed


def _summary(results: Any) -> list[str]:
    lines = []
    for r in results if isinstance(results, list) else []:
        if isinstance(r, dict) and {"name", "value"} <= set(r):
            lines.append(f"{r['name']:24} {'-' if r['value'] is None else format(r['value'], '.4g')}")
        if not isinstance(r, AttackResult):
            continue
        auroc = r.metrics.get("auroc")
        number = f"AUROC {auroc.value:.3f} [{_end(auroc.low)}, {_end(auroc.high)}]" if auroc is not None else "done"
        lines.append(f"{r.attack:24} {number}{'  <- strongest on fit data' if r.strongest else ''}")
    return lines


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
