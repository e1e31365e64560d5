"""The class-level inversion audit as a callback."""

from typing import Any

import lightning.pytorch as L

from lightning_privacy.attacks.inversion.plug_and_play import PlugAndPlay
from lightning_privacy.callbacks.audits.class_inversion_audit import ATTACK, ClassPlan, audit_classes
from lightning_privacy.callbacks.audits.evidence import defences_of
from lightning_privacy.callbacks.audits.inversion_grid import save_reconstructions
from lightning_privacy.callbacks.audits.inversion_pictures import AUX
from lightning_privacy.callbacks.audits.inversion_target import check_taps
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["ClassInversionAudit"]

_ROLES = (AUX, "member", "holdout")


class ClassInversionAudit(ResultAudit):
    """Draw pictures of a classifier's classes from a generator that its scores guide, and judge how much they show.

    The attack is Plug & Play (arXiv 2201.12179): it knows the model's weights and its defences. Its generator is trained on
    ``attack_nonmember`` of the trainer's `MembershipSplit`, or given. Another classifier, trained apart and unknown to the
    attacker, says whether a picture shows the class, and its features how near it comes to the class's training pictures.
    No picture is compared pixel by pixel: this family is about classes (such as people), `InversionAudit` about single
    pictures. The result stands beside pictures that the generator draws at random and those of the attacker's own that
    the model is surest about; ``natural_distance`` is how far training pictures of a class are from each other. Results go
    to ``results.jsonl`` and the loggers, a sheet to ``pictures``.

    Args:
        classes: Classes attacked, each with training pictures; the first ones if not given.
        most: Classes attacked where ``classes`` is not given.
        attack_args: Arguments of `PlugAndPlay`, such as ``{steps: 70, optimised: 20}``.
        generator: A network, built by class path, that turns latents into pictures; an autoencoder trained on the
            attacker's pictures if not given.
        generator_weights: A safetensors file with the weights of ``generator``.
        latent_dim: Length of a latent; 32 for the autoencoder and 512 for a network if not given.
        generator_steps: Optimizer steps of the autoencoder at most; it ends where its loss is flat.
        evaluation_steps: Optimizer steps of the classifier that judges.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        grid: Classes on the sheet; 0 for none. It shows training pictures to whoever sees the run.
        seed: Of generator, attack, judge and bootstrap.
        bootstrap: Resamples of classes behind each 95 % interval.

    Raises:
        InputError: a number is out of range, a network comes without weights or weights without a network, or, when it
            runs, a class has no training picture.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module has no ``logits``.
    """

    def __init__(
        self,
        classes: list[int] | None = None,
        most: int = 10,  # chosen here: the interval is over classes
        attack_args: dict[str, Any] | None = None,
        generator: Any | None = None,
        generator_weights: str | None = None,
        latent_dim: int | None = None,
        generator_steps: int = 3000,  # see `train_generator`
        evaluation_steps: int = 600,  # see `train_evaluation_classifier`
        every_n_epochs: int | None = None,
        at_end: bool = True,
        grid: int = 8,
        seed: int = 0,
        bootstrap: int = 2000,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        if classes is not None and (not classes or len(set(classes)) < len(classes) or min(classes) < 0):
            raise InputError(f"ClassInversionAudit needs different classes from 0 on, but got {classes}.")
        if (
            min(most, generator_steps, evaluation_steps, bootstrap) < 1
            or grid < 0
            or (latent_dim is not None and latent_dim < 1)
        ):
            raise InputError(
                "ClassInversionAudit needs most, generator_steps, evaluation_steps, bootstrap and latent_dim of at least 1 "
                f"and grid of at least 0, but got {most=}, {generator_steps=}, {evaluation_steps=}, {bootstrap=}, "
                f"{latent_dim=}, {grid=}."
            )
        if (generator is None) != (generator_weights is None):
            raise InputError(
                "ClassInversionAudit takes `generator` (a network) and `generator_weights` (its safetensors file) together; "
                "give both, or neither to train a generator on the attacker's pictures."
            )
        self.attack_args = dict(attack_args or {})
        try:
            PlugAndPlay(**self.attack_args)
        except TypeError as error:
            raise InputError(
                f"ClassInversionAudit: `attack_args` {self.attack_args} are not PlugAndPlay's: {error}."
            ) from error
        self.classes, self.most, self.generator, self.generator_weights = classes, most, generator, generator_weights
        self.latent_dim, self.generator_steps, self.evaluation_steps = latent_dim, generator_steps, evaluation_steps
        self.grid, self.seed, self.bootstrap = grid, seed, bootstrap

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing of the data."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "ClassInversionAudit"), list(_ROLES), "ClassInversionAudit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the module shows class scores."""
        check_taps(pl_module, {"logits": None})

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Attack the classes; every rank does the same, and rank zero writes."""
        check_taps(module, {"logits": None})
        plan = ClassPlan(
            classes=self.classes,
            most=self.most,
            attack=PlugAndPlay(**self.attack_args),
            network=self.generator,
            weights=self.generator_weights,
            latent_dim=self.latent_dim,
            generator_steps=self.generator_steps,
            evaluation_steps=self.evaluation_steps,
            shown=self.grid,
            seed=self.seed,
            bootstrap=self.bootstrap,
        )
        about = AuditedModel(trainer.global_step, epoch, tuple(defence.name for defence in defences_of(trainer)))
        results, sheet = audit_classes(module, find_split(trainer, "ClassInversionAudit"), plan, about)
        if trainer.is_global_zero and self.grid:
            save_reconstructions(trainer, {"classes": sheet}, epoch)
        return results

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the results that `audit` would write."""
        return {f"logits/classes/{ATTACK}"}
