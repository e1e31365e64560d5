"""Distance of generated pictures from real ones, as a callback."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn

from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.callbacks.audits.untouched import on_rank_zero, untouched
from lightning_privacy.callbacks.quality.distances import distance_between
from lightning_privacy.callbacks.quality.extractors import METRICS, build_extractor
from lightning_privacy.callbacks.quality.grids import save_grid
from lightning_privacy.callbacks.quality.picture_sets import PictureSet, generated_set, real_set, spread
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.protocols import GeneratesImages

__all__ = ["ImageQuality"]


class ImageQuality(L.Callback):
    """Measure how far generated pictures are from real ones, and save a sample sheet.

    Pictures are made from the captions of the real set. The distance to ``real_role`` (pictures the model never saw)
    is the quality; the distance to ``member_role`` beside it shows copying, and ``<metric>_floor``, the distance
    between the two real sets, is what a perfect model would get at these counts. Lines go to ``measurements.jsonl`` in
    the run's folder with their picture counts, values to the loggers as ``quality/<metric>``.

    Args:
        metrics: Of ``fid``, ``kid`` (Inception features), ``fd_efficientnet_lite0`` and ``kid_efficientnet_lite0``
            (features out of a wheel, no download).
        n: Pictures to generate, at least 3. Frechet distances fall with more pictures: compare equal counts only.
        every_n_epochs: Measure at the end of every so many epochs too.
        at_end: Measure when training ends.
        seed: Of the pictures.
        prompts: Prompts in turn; the captions of ``real_role`` if not given.
        real_role: Role of the real pictures.
        member_role: Role whose distance is reported beside it; none if null.
        batch_size: Pictures a call of ``generate``.
        generate_options: Further arguments of ``generate``, such as the number of steps.
        inception_weights: File of torch-fidelity's Inception weights; downloaded if not given and needed.
        cache_dir: Folder that keeps the real pictures' features, by content, for other runs.
        grid: Pictures on the sample sheet; 0 for none.

    Raises:
        InputError: an unknown metric; at the start of training, extractor weights that are not at hand.
        MissingProtocolError: at the start of training, a module without ``generate``.
        SplitError: at the start of training, a datamodule that is no `MembershipSplit`.
    """

    def __init__(
        self,
        metrics: list[str] | None = None,
        n: int = 128,  # chosen here: half a minute for the tiny model; published FID takes 10,000 and more
        every_n_epochs: int | None = None,
        at_end: bool = True,
        seed: int = 0,
        prompts: list[str] | None = None,
        real_role: str = "holdout",
        member_role: str | None = "eval_member",
        batch_size: int = 16,
        generate_options: dict[str, Any] | None = None,
        inception_weights: str | Path | None = None,
        cache_dir: str | Path | None = None,
        grid: int = 16,
    ) -> None:
        super().__init__()
        self.metrics = ["fd_efficientnet_lite0", "kid_efficientnet_lite0"] if metrics is None else metrics
        unknown = [m for m in self.metrics if m not in METRICS]
        if unknown or not self.metrics:
            raise InputError(f"ImageQuality knows no metric {unknown}; there are {', '.join(METRICS)}.")
        if n < 3 or batch_size < 1 or grid < 0 or (every_n_epochs or 1) < 1 or prompts == []:
            raise InputError(
                f"ImageQuality needs n >= 3, batch_size >= 1, grid >= 0, every_n_epochs >= 1 and prompts (or none "
                f"given), but got n={n}, batch_size={batch_size}, grid={grid}, every_n_epochs={every_n_epochs}."
            )
        self.n, self.every_n_epochs, self.at_end, self.seed = n, every_n_epochs, at_end, seed
        self.prompts, self.real_role, self.member_role = prompts, real_role, member_role
        self.batch_size, self.generate_options, self.grid = batch_size, generate_options, grid
        self.inception_weights = inception_weights
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        # A plain dict: extractors must not become part of anything that is saved or trained.
        self._extractors: dict[str, nn.Module] = {}
        self._real: dict[str, PictureSet] = {}
        self._measured_step: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing."""
        if stage == "fit":
            self._real, self._measured_step = {}, None
            self._prepare(trainer, pl_module)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, GeneratesImages):
            raise MissingProtocolError(
                f"ImageQuality needs `{type(pl_module).__name__}.generate(prompts, *, seed) -> pictures in [0, 1]`. "
                "Add it to the module, or remove ImageQuality."
            )
        check_roles(find_split(trainer, "ImageQuality"), self._roles(), "ImageQuality")
        with torch.random.fork_rng(devices=[]):  # building layers draws their initial values
            for name in dict.fromkeys(METRICS[m][0] for m in self.metrics):
                if name not in self._extractors:
                    self._extractors[name] = build_extractor(name, self.inception_weights)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure every n epochs."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs is None or epoch % self.every_n_epochs or trainer.sanity_checking:
            return
        values = _logged(self.audit(trainer, pl_module, epoch))
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the final model, unless the last epoch's measurement was of the same weights."""
        if not self.at_end or self._measured_step == trainer.global_step:
            return
        values = _logged(self.audit(trainer, pl_module, trainer.current_epoch))
        # `log` is closed by now.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def audit(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> list[dict[str, Any]]:
        """Generate, measure and append to the run's folder now; every rank must call.

        Args:
            trainer: The trainer, whose datamodule is the split.
            module: The module.
            epoch: Epochs completed, for the record.

        Returns:
            The lines of ``measurements.jsonl``.
        """
        self._prepare(trainer, module)
        split = find_split(trainer, "ImageQuality")
        with untouched(module):
            for role in self._roles():
                if role not in self._real:
                    self._real[role] = real_set(module, split, role, self._extractors, self.cache_dir)
            prompts = self.prompts or self._real[self.real_role].captions
            if not prompts:
                raise InputError(
                    f"The role `{self.real_role}` has no captions to generate from; give ImageQuality(prompts=[...])."
                )
            generated = generated_set(
                module,
                spread(prompts, self.n),
                self.seed,
                self.batch_size,
                self._extractors,
                self.grid,
                self.generate_options,
            )
            for extractor in self._extractors.values():
                extractor.cpu()  # leave the accelerator's memory to training
        lines = on_rank_zero(lambda: self._lines(generated))
        lines = [{**line, "kind": "quality", "step": trainer.global_step, "epoch": epoch} for line in lines]
        self._measured_step = trainer.global_step
        if trainer.is_global_zero:
            folder = RunFolder(trainer.default_root_dir)
            for line in lines:
                folder.append_measurement(line)
            self._show(trainer, generated, epoch)
        return lines

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the lines that `audit` would write."""
        suffixes = ["", "_member", "_floor"] if self.member_role else [""]
        return {metric + suffix for metric in self.metrics for suffix in suffixes}

    def _roles(self) -> list[str]:
        return [self.real_role, *([self.member_role] if self.member_role else [])]

    def _lines(self, generated: PictureSet) -> list[dict[str, Any]]:
        pairs = [("", self.real_role, generated)]
        if self.member_role:
            pairs += [
                ("_member", self.member_role, generated),
                ("_floor", self.real_role, self._real[self.member_role]),
            ]
        lines = []
        for metric in self.metrics:
            extractor, distance = METRICS[metric]
            for suffix, role, other in pairs:
                real, fake = self._real[role].features[extractor], other.features[extractor]
                counts = {"generated": len(fake), "real": len(real)}
                if suffix == "_floor":
                    counts = {"real_other": len(fake), "real": len(real)}
                lines.append({"name": metric + suffix, "n": counts, **distance_between(distance, real, fake)})
        return lines

    def _show(self, trainer: L.Trainer, generated: PictureSet, epoch: int) -> None:
        if generated.samples is not None:
            save_grid(trainer, generated.samples, f"samples-epoch-{epoch:04d}")


def _logged(lines: list[dict[str, Any]]) -> dict[str, float]:
    return {f"quality/{line['name']}": line["value"] for line in lines if line["value"] is not None}
