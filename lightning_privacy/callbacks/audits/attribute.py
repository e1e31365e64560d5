"""The audit of attribute inference as a callback."""

from typing import Any

import lightning.pytorch as L

from lightning_privacy.attacks.attribute.inference import AttributeRecords
from lightning_privacy.callbacks.audits.attribute_attacks import check_attack_names, choose_attribute_attacks
from lightning_privacy.callbacks.audits.attribute_audit import audit_attribute
from lightning_privacy.callbacks.audits.attribute_records import attribute_values, read_records
from lightning_privacy.callbacks.audits.declared_attribute import DeclaredAttribute
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import ROLES, AuditedModel
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["AttributeAudit"]


class AttributeAudit(ResultAudit):
    """Ask whether a classifier betrays its training records' sensitive attribute, beyond what anyone could guess.

    The attacker knows the attribute of ``aux_member`` and ``attack_nonmember`` and learns from them to read it off the
    model's class scores and embedding, of members and of others apart; for a model that has the attribute among its inputs
    it takes the value with which the model is surest of the true class. Judged are ``eval_member`` against ``holdout``,
    beside the majority value and an imputation that never saw the model: ``member_minus_nonmember`` and
    ``above_imputation_member`` must both exceed zero before training can be said to have leaked the attribute. Results of
    family ``attribute`` go to ``results.jsonl`` and the loggers. Weights, statistics, mode and random state are as before.

    Args:
        attribute: Where a batch holds the attribute, one whole number a record: a key, a place in a tuple, or the import
            path of a function (batch) -> tensor. The default is what ``TorchvisionImages`` gives for CelebA with
            ``sensitive: Male``; of a folder of pictures a function can look up ``batch["record"]``.
        attacks: Of ``attribute_scores``, ``attribute_embedding``, ``attribute_confidence`` and
            ``attribute_confidence_prior``; those that suit the model if not given.
        reads_attribute: Whether the attribute is among the model's inputs, not merely seen in a picture.
        set_attribute: Import path of a function (batch, value) -> batch whose records all have the value, for a model
            that reads the attribute elsewhere than where ``attribute`` says; ``known`` must then be given too.
        known: Import path of a function (batch) -> features of shape (batch, features): what is known of a record without
            model and attribute, for the imputation; the pictures, averaged to at most 8 by 8 pixels, if not given.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        seed: Seed of fits and bootstrap.
        batch_size: Records at once; the datamodule's own if not given.

    Raises:
        InputError: an attack is unknown or does not suit the model; at the start of training, where the attribute is
            absent, is no whole number a record, or has one value only.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module lacks what an attack needs.

    Example:
        >>> AttributeAudit("smoker", reads_attribute=True, every_n_epochs=5).every_n_epochs
        5

    Source:
        arXiv 1805.04049, arXiv 1806.01246 and arXiv 2012.03404 (the attacks), arXiv 2209.01292 (imputation as the
        baseline). The difference of members and hold-out, each by a probe of its own kind, is ours.
    """

    family = "attribute"

    def __init__(
        self,
        attribute: str | int | Any = "sensitive",
        attacks: list[str] | None = None,
        reads_attribute: bool = False,
        set_attribute: str | Any | None = None,
        known: str | Any | None = None,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"AttributeAudit needs batch_size >= 1, but got {batch_size}.")
        if set_attribute is not None and (not reads_attribute or known is None):
            raise InputError(
                "AttributeAudit: `set_attribute` is for a model that reads the attribute; set `reads_attribute: true`, and "
                "give `known`, the features of a record without the attribute."
            )
        if attacks is not None:
            check_attack_names(attacks, reads_attribute)
        self.attribute, self.attacks, self.reads_attribute = attribute, attacks, reads_attribute
        self.set_attribute, self.known = set_attribute, known
        self.seed, self.batch_size = seed, batch_size
        self._declared = DeclaredAttribute(attribute, set_attribute, known)
        if reads_attribute and set_attribute is None and self._declared.function is not None:
            raise InputError(
                f"AttributeAudit: the attribute is read by the function `{self._declared.name}`, and nothing says how it "
                "is set to another value; give `set_attribute`, a function (batch, value) -> batch."
            )
        # Attribute values do not change while training: read once, and before hours are spent on it.
        self._read: tuple[str, dict[str, AttributeRecords]] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "AttributeAudit"), ROLES, "AttributeAudit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the module's protocols, which a mixin or ``configure_model`` may have supplied by now; read the attribute."""
        choose_attribute_attacks(self.attacks, pl_module, self.reads_attribute)
        records = self._records(pl_module, find_split(trainer, "AttributeAudit"))
        each = [records[role] for role in ROLES]
        attribute_values(each[:2], each[2:], self._declared.name)

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Run the attacks."""
        split = find_split(trainer, "AttributeAudit")
        return audit_attribute(
            module,
            split,
            self._declared,
            self.attacks,
            reads_attribute=self.reads_attribute,
            seed=self.seed,
            batch_size=self.batch_size,
            records=self._records(module, split),
            model=AuditedModel(trainer.global_step, epoch),
        )

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the attacks that `audit` would run."""
        return set(choose_attribute_attacks(self.attacks, module, self.reads_attribute))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of what was read."""
        self._read = None

    def _records(self, module: L.LightningModule, split: Any) -> dict[str, AttributeRecords]:
        if self._read is None or self._read[0] != split.split_hash:
            self._read = split.split_hash, read_records(module, split, ROLES, self._declared, self.batch_size)
        return self._read[1]
