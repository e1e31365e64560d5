"""The structural audit as a callback."""

from typing import Any

import lightning.pytorch as L

from lightning_privacy.attacks.structural.near_duplicates import THRESHOLD
from lightning_privacy.attacks.structural.published_outputs import DECIMALS, SMALLEST_GROUP
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.similar_records import SIMILARITIES, audit_similar_records
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.callbacks.audits.structural_checks import FNR, ROLES, audit_structure, check_names
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["StructuralAudit"]


class StructuralAudit(ResultAudit):
    """Check what the model and its split give away by their structure, without fitting an attack.

    Compared are members that nobody fitted on with the hold-out: the gap of their losses (test, size and the parameters
    that it amounts to), whether the members' tail of high losses has vanished (a pre-screen that says whether attacks with
    shadow models are worth their cost), outputs that no other record shares when rounded as a service would publish them,
    classes that the model never answers or never gives a probability, classes of few records, and non-members that nearly
    equal a member. Known rules for classical models (more parameters than records, unique outputs; arXiv 2212.01233,
    2502.09396) flag every deep network; here such counts are shown beside what they mean, and none of the checks is a
    verdict. Results go to ``results.jsonl`` and the loggers. Weights, statistics, mode and random state are as before.

    Args:
        every_n_epochs: Check at the end of every so many epochs too.
        at_end: Check when training ends.
        similarity: What near-duplicates are looked for in: ``thumbnail`` (pictures of 16 by 16 grey pixels, mirrored or
            not), ``embedding`` (the module's own), or null for not at all.
        threshold: Cosine from which two records are near-duplicates; the default was measured on thumbnails.
        decimals: Digits of the probability that a service would publish.
        smallest: A group of equal outputs or a class below this size counts as small.
        fnr: Share of the members that may lie in the tail of high losses at the pre-screen; at least 10 members must be
            in that share for the result to be valid.
        draws: Noises at each timestep, for a module with draws.
        timesteps: Diffusion steps at which errors are measured; ten over the module's schedule if not given.
        seed: Seed of draws and bootstrap.
        bootstrap: Resamples behind the intervals of the loss gap and of the pre-screen.
        batch_size: Records at once; the datamodule's own if not given.
        error_fn: Import path of a function (module, batch, draw) -> error of each sample, for a module without
            ``per_sample_error`` and ``logits``.

    Raises:
        InputError: a number is out of range.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module gives neither class scores nor errors.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        similarity: str | None = "thumbnail",
        threshold: float | int = THRESHOLD,
        decimals: int = DECIMALS,
        smallest: int = SMALLEST_GROUP,
        fnr: float = FNR,
        draws: int = 2,
        timesteps: list[int] | None = None,
        seed: int = 0,
        bootstrap: int = 2000,
        batch_size: int | None = None,
        error_fn: str | Any | None = None,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        numbers = min(draws, smallest) >= 1 and bootstrap >= 0 and timesteps != []
        if not 0 < fnr < 1:
            raise InputError(f"StructuralAudit needs `fnr` between 0 and 1, but got {fnr}.")
        if not numbers or not 0 <= decimals <= 9 or not -1 < threshold <= 1 or similarity not in (*SIMILARITIES, None):
            raise InputError(
                "StructuralAudit needs draws and smallest >= 1, bootstrap >= 0, decimals from 0 to 9, "
                f"threshold in (-1, 1] and similarity thumbnail, embedding or null, but got "
                f"{draws=}, {smallest=}, {bootstrap=}, {timesteps=}, {decimals=}, {threshold=}, {similarity=}."
            )
        self.similarity, self.threshold, self.decimals, self.smallest = similarity, threshold, decimals, smallest
        self.fnr = fnr
        self.draws, self.timesteps, self.seed, self.bootstrap = draws, timesteps, seed, bootstrap
        self.batch_size, self.error_fn = batch_size, error_fn

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "StructuralAudit"), ROLES, "StructuralAudit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the module's protocols, which a mixin or ``configure_model`` may have supplied by now."""
        check_names(pl_module, self.error_fn)
        if self.similarity == "embedding" and not callable(getattr(pl_module, "embedding", None)):
            raise InputError(
                f"StructuralAudit compares embeddings, but `{type(pl_module).__name__}` has no `embedding(batch)`; add "
                "it, or use `similarity: thumbnail`."
            )

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Run the checks."""
        split, about = find_split(trainer, "StructuralAudit"), AuditedModel(trainer.global_step, epoch)
        results = audit_structure(
            module,
            split,
            timesteps=self.timesteps,
            draws=self.draws,
            seed=self.seed,
            bootstrap=self.bootstrap,
            decimals=self.decimals,
            smallest=self.smallest,
            fnr=self.fnr,
            batch_size=self.batch_size,
            error_fn=self.error_fn,
            model=about,
        )
        if self.similarity is not None:
            results.append(
                audit_similar_records(
                    module,
                    split,
                    self.similarity,
                    self.threshold,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    model=about,
                )
            )
        return results

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the checks that `audit` would write."""
        return {*check_names(module, self.error_fn), *(["near_duplicates"] if self.similarity else [])}
