"""The release dossier as data: everything that a verdict rests on, and nothing that must not leave."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from lightning_privacy.report.dossier.decisions import SignOff, Waiver
from lightning_privacy.report.dossier.policy import Policy

__all__ = [
    "SCHEMA_VERSION",
    "About",
    "Artifact",
    "AttackEntry",
    "Claims",
    "Decision",
    "Evidence",
    "Finding",
    "Histogram",
    "Measurement",
    "Number",
    "Parent",
    "Protection",
    "RecordSummary",
    "ReleaseDossier",
    "ScoreSummary",
    "Slice",
    "Verdict",
]

SCHEMA_VERSION = 1

Verdict = Literal["go", "conditional", "no_go", "insufficient_evidence"]
Outcome = Literal["passed", "shown", "not_excluded", "no_evidence", "not_applicable"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Number(_Part):
    """One number with its interval.

    Args:
        value: The estimate; null where there is none, and then ``reason`` says why.
        low: Lower end of the interval.
        high: Upper end.
        method: How the interval was found.
        level: Its coverage.
        valid: False where the sample cannot support the number.
        reason: Why it is not valid.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    level: float = 0.95
    valid: bool = True
    reason: str = ""

    @model_validator(mode="after")
    def _no_silent_null(self) -> "Number":
        if self.value is None and (self.valid or not self.reason):
            raise ValueError("a number that is null must be invalid and say why")
        return self


class Histogram(_Part):
    """Counts of scores between edges; what lies outside is counted at the ends."""

    edges: list[float]
    member: list[int]
    nonmember: list[int]


class Slice(_Part):
    """An attack on some of the records alone.

    Args:
        by: What divides the records: ``class``, ``subgroup`` or ``loss_quantile``.
        value: Which part this is.
        n: Its records by role.
        auroc: The attack's AUROC on them, its interval corrected for the number of parts.
    """

    by: Literal["class", "subgroup", "loss_quantile"]
    value: str
    n: dict[str, int]
    auroc: Number


class AttackEntry(_Part):
    """One attack on the model that is to be released.

    Args:
        family: Its family.
        name: Its name.
        access: What the attacker must have.
        seed: Its seed.
        step: Optimizer steps of the model.
        n: Evaluated records by role.
        failed: Why it gave no result; empty if it did.
        converged: Whether the attacker's own fit converged.
        strongest: Whether fit data chose it as the strongest of its family.
        fit_auroc: AUROC on the attacker's own records.
        metrics: Its numbers by name.
        roc: Points (false-positive rate, true-positive rate).
        histogram: Scores of members and non-members, of the strongest attack alone.
        slices: The attack on parts of the records.
        settings: Plain values that it was run with; no scores.
        notes: What must be read beside its numbers.
    """

    family: str
    name: str
    access: str
    seed: int
    step: int
    n: dict[str, int]
    failed: str = ""
    converged: bool = True
    strongest: bool = False
    fit_auroc: float | None = None
    metrics: dict[str, Number] = {}
    roc: list[tuple[float, float]] = []
    histogram: Histogram | None = None
    slices: list[Slice] = []
    settings: dict[str, JsonValue] = {}
    notes: list[str] = []


class ScoreSummary(_Part):
    """What one attack's scores look like over the records.

    Args:
        threshold: Where the attack calls a record a member, found on its fit data; null where it has none.
        quantiles: Level of each quantile.
        member: Quantiles of the members' scores.
        nonmember: Those of the non-members.
        member_share_above: Share of members at or above the threshold.
        nonmember_share_above: Share of non-members.
    """

    threshold: float | None
    quantiles: list[float]
    member: list[float]
    nonmember: list[float]
    member_share_above: float | None
    nonmember_share_above: float | None


class RecordSummary(_Part):
    """Counts over the records; the records themselves, salted, are in the sidecar.

    Args:
        n_member: Members.
        n_nonmember: Non-members.
        id_source: What the salted ids were made from.
        attacks: Scores by attack.
        flagging_attacks: Attacks with a threshold, which are those that can flag.
        member_flag_counts: Number of members that 0, 1, 2, ... attacks flag.
        nonmember_flag_counts: The same of non-members.
    """

    n_member: int
    n_nonmember: int
    id_source: str
    attacks: dict[str, ScoreSummary]
    flagging_attacks: list[str]
    member_flag_counts: list[int]
    nonmember_flag_counts: list[int]

    @model_validator(mode="after")
    def _counts_add_up(self) -> "RecordSummary":
        sides = {"member": self.n_member, "nonmember": self.n_nonmember}
        for side, n in sides.items():
            counts: list[int] = getattr(self, f"{side}_flag_counts")
            if len(counts) != len(self.flagging_attacks) + 1 or min(counts) < 0 or sum(counts) != n or n < 1:
                raise ValueError(
                    f"{side}_flag_counts must count {n} records, at least 1, by 0 to {len(self.flagging_attacks)} attacks"
                )
        return self


class Claims(_Part):
    """A claim of differential privacy, with where it was found."""

    epsilon: float = Field(ge=0)
    delta: float | None = None
    source: str


class Measurement(_Part):
    """A measurement of utility, quality, cost or privacy accounting."""

    kind: str
    name: str
    number: Number
    n: JsonValue = None
    step: int = 0


class Evidence(_Part):
    """What a policy is held against.

    Args:
        attacks: Attacks on the model.
        records: Counts over the records.
        claims: A claim of differential privacy.
        generalisation_gap: Training minus validation accuracy, as a share.
        measurements: Utility, quality, cost.
        gaps: What is missing for any release, in words (a defence without an attack that knows it).
    """

    attacks: list[AttackEntry] = []
    records: RecordSummary | None = None
    claims: Claims | None = None
    generalisation_gap: Number | None = None
    measurements: list[Measurement] = []
    gaps: list[str] = []


class Finding(_Part):
    """One rule held against one attack, or against the run.

    Args:
        rule: The rule's id.
        severity: The rule's.
        attack: The attack; null for a metric of the run.
        observed: What was compared.
        threshold: With what.
        margin: How far inside the limit it is; negative beyond it.
        outcome: ``shown`` (even the favourable end of the interval is beyond the limit), ``not_excluded`` (only the
            unfavourable end is), ``passed``, ``no_evidence``, ``not_applicable``.
        conclusive: False where the evidence cannot clear the rule, whatever its number.
        sentence: The same in words.
    """

    rule: str
    severity: Literal["block", "warn"]
    attack: str | None
    observed: float | None
    threshold: float | None
    margin: float | None
    outcome: Outcome
    conclusive: bool
    sentence: str


class Decision(_Part):
    """The verdict with its reasons.

    Args:
        verdict: The verdict.
        summary: The same in one sentence.
        reasons: What brought it about.
        findings: Every rule held against every attack.
        waivers: Rules that people let the model past.
        signoff: Who signed.
    """

    verdict: Verdict
    summary: str
    reasons: list[str]
    findings: list[Finding]
    waivers: list[Waiver] = []
    signoff: list[SignOff] = []


class About(_Part):
    """What only the owner can say; for the model card."""

    task: str = ""
    intended_use: str = ""
    out_of_scope: str = ""
    licence: str = ""
    owner: str = ""


class Checkpoint(_Part):
    """A file of weights."""

    path: str
    sha256: str
    n_bytes: int


class Parent(_Part):
    """What a model was made from.

    Args:
        what: Its part: ``weights`` that training started from.
        name: A model's name, or a file's without its folder.
        sha256: Of the file; null where there is none to read.
    """

    what: Literal["weights"]
    name: str
    sha256: str | None


class Subject(_Part):
    """The model that is to be released."""

    name: str
    model: str
    step: int
    epoch: int
    checkpoint: Checkpoint | None
    settings: dict[str, JsonValue]
    about: About


class DataCard(_Part):
    """The records, as counts and hashes."""

    split_sha256: str
    roles: dict[str, int]
    split_seed: int | None
    unit_of_privacy: str


class Protection(_Part):
    """A defence.

    Args:
        name: Its registered name.
        settings: Its settings.
        key_fingerprint: Hash that tells its key, never the key.
        adaptive_attacks: Attacks that know it.
        attacked: Those of them that were run on this model.
    """

    name: str
    settings: dict[str, JsonValue]
    key_fingerprint: str | None
    adaptive_attacks: list[str]
    attacked: list[str]


class Moment(_Part):
    """Utility and leak at one step of training."""

    step: int
    val_loss: float | None
    auroc: Number | None


class Artifact(_Part):
    """A file that belongs to the dossier."""

    path: str
    sha256: str
    media_type: str
    disclosure: Literal["public", "internal", "restricted"]


class ReleaseDossier(Evidence):
    """Everything that a decision on releasing a model rests on.

    Args:
        schema_version: Version of this layout.
        dossier_id: Random.
        created_at: ISO time, UTC.
        toolkit: Name and version of this package.
        environment: Versions under which the dossier was made.
        subject: The model.
        data: The records.
        protections: The defences.
        history: Utility and leak over training.
        policy: What it was held against.
        decision: The verdict.
        artifacts: Files beside it.
        limitations: What the numbers do not show, in words.
        provenance: sha256 of the files it was made from; of the attack results without their times.
        parents: What the model was made from.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    dossier_id: str
    created_at: str
    toolkit: dict[str, str]
    environment: dict[str, str]
    subject: Subject
    data: DataCard
    protections: list[Protection]
    history: list[Moment]
    policy: Policy
    decision: Decision
    artifacts: list[Artifact] = []
    limitations: list[str]
    provenance: dict[str, str]
    parents: list[Parent] = []
