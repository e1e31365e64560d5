"""The audit contract: what attacks are given, what they return. Pure data, no Lightning."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.core.line_types import check_result

__all__ = ["AttackResult", "MembershipAttack", "Metric", "Signals"]


@dataclass(frozen=True)
class Metric:
    """One measured number with its interval.

    Args:
        value: The estimate.
        low: Lower end of the 95 % interval, or None where none was computed.
        high: Upper end.
        valid: False where the sample cannot support the number.
        reason: Why it is not valid.
    """

    value: float
    low: float | None = None
    high: float | None = None
    valid: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Signals:
    """What was observed of a set of records, once for all attacks; fields that no attack asked for are None.

    Args:
        record_ids: Identity of each record, hexadecimal.
        loss: Raw error of each record under each draw, averaged over the map.
        reference_loss: The same draws under the model before fine-tuning.
        timesteps: Diffusion step of each draw (shared by all records).
        error_map: Error maps, pooled to a fixed size.
        reference_error_map: The same for the model before fine-tuning.
        logits: Class scores of the record itself (query 0) and of augmented copies of it.
        embedding: Features before the last layer.
        labels: True classes.
        shadow_confidence: Scaled confidence log(p / (1 - p)) in the true class, of each query under each shadow model.
        shadow_in: Whether each shadow model was trained on the record.
        boundary_distance: Estimated distance to the nearest input of another predicted class, by labels alone.
    """

    record_ids: tuple[str, ...]
    loss: Float[Tensor, "records draws"] | None = None
    reference_loss: Float[Tensor, "records draws"] | None = None
    timesteps: Int[Tensor, " draws"] | None = None
    error_map: Float[Tensor, "records draws features"] | None = None
    reference_error_map: Float[Tensor, "records draws features"] | None = None
    logits: Float[Tensor, "records queries classes"] | None = None
    embedding: Float[Tensor, "records dimensions"] | None = None
    labels: Int[Tensor, " records"] | None = None
    shadow_confidence: Float[Tensor, "records shadows queries"] | None = None
    shadow_in: Bool[Tensor, "records shadows"] | None = None
    boundary_distance: Float[Tensor, " records"] | None = None

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.record_ids)


@runtime_checkable
class MembershipAttack(Protocol):
    """A membership-inference attack on observed signals; pure torch.

    Attributes:
        name: Name in tables, snake case.
        requires: Fields of `Signals` that it reads.
        access: What the attacker must have, in words (``"loss queries"``, ``"weights and base model"``).
    """

    name: str
    requires: frozenset[str]
    access: str

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit on records whose membership the attacker knows; return whether the fit converged."""
        ...

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return one number a record, higher = more member-like."""
        ...


@dataclass(frozen=True)
class AttackResult:
    """The outcome of one attack on one model; one line of ``results.jsonl``.

    Args:
        family: ``membership``, ``attribute``, ``structural``, ``canary``, ``inversion``, ``class_inversion``,
            ``leakage``, ``lock``; what stands beside them for comparison has a family of its own (``leakage_control``).
        attack: Name of the attack.
        access: What the attacker must have.
        seed: The attack's seed.
        split_hash: sha256 of the split record.
        n: Evaluation counts by role, e.g. ``{"member": 30, "holdout": 40}``.
        metrics: Measured numbers by name (``auroc``, ``tpr_at_fpr_0.05``, ...).
        converged: Whether the attacker's own fit converged.
        strongest: Whether fit data chose this attack as the strongest of its family.
        fit_auroc: Cross-validated AUROC on the fit data, which chooses the strongest attack and the sign.
        step: Optimizer steps of the audited model.
        epoch: Its epoch.
        roc: At most 200 points (false-positive rate, true-positive rate).
        notes: Sentences a reader must see beside the numbers.
        created: ISO time.
        extra: Further plain values of the family (fit counts, checkpoint name).
    """

    family: str
    attack: str
    access: str
    seed: int
    split_hash: str
    n: Mapping[str, int]
    metrics: Mapping[str, Metric]
    converged: bool = True
    strongest: bool = False
    fit_auroc: float | None = None
    step: int = 0
    epoch: int = 0
    roc: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    created: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "AttackResult":
        """Read one line of ``results.jsonl``.

        Args:
            line: The line.

        Raises:
            ValueError: it is no JSON, or a field is missing, unknown or of another type; the message names it.
        """
        raw = json.loads(line)
        check_result(raw)
        raw["metrics"] = {name: Metric(**m) for name, m in raw["metrics"].items()}
        raw["roc"] = tuple(tuple(p) for p in raw["roc"])
        raw["notes"] = tuple(raw["notes"])
        return cls(**raw)
