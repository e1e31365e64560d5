"""Rules on a training configuration: what can be said against it before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning_privacy.cli.ante_hoc_plan import TrainingPlan
from lightning_privacy.metrics.functional.epsilon import epsilon_from_counts
from lightning_privacy.metrics.functional.low_fpr import low_fpr_validity
from lightning_privacy.metrics.functional.one_run import one_run_epsilon

__all__ = ["RULES", "Finding", "judge"]

MANY_EPOCHS = 20  # chosen here: by then small networks without regularisation have fitted every record
FEW_SHADOWS = 16  # chosen here; variance is what few shadows cannot estimate (arXiv 2603.11799)
_ENDS_AT_ZERO = ("CosineAnnealingLR", "OneCycleLR", "PolynomialLR")
_NEED_SPLIT = {"membership", "structural", "canaries", "attribute"}


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Args:
        id: Name of the rule.
        looked_at: What it read.
        finding: What is there.
        why: Why that matters; empty where nothing is wrong.
        remedy: What to change.
        severity: ``block`` (the run cannot give what it is for), ``warn``, ``note``, ``unknown`` (cannot be told from the
            configuration) or ``ok``.
    """

    id: str
    looked_at: str
    finding: str
    why: str = ""
    remedy: str = ""
    severity: str = "ok"


def judge(plan: TrainingPlan) -> list[Finding]:
    """Return one finding of every rule.

    Example:
        >>> [f.severity for f in judge(TrainingPlan(batch_size=1)) if f.id == "batch_of_one"]
        ['warn']
    """
    return [rule(plan) for rule in RULES]


def _no_audit(plan: TrainingPlan) -> Finding:
    if plan.audits:
        return Finding("no_audit", "audits", ", ".join(plan.audits))
    return Finding(
        "no_audit",
        "audits",
        "none",
        "nothing will attack the result, so nobody will know what it leaks",
        "add `audits: {membership: {}}`",
        "warn",
    )


def _audit_without_split(plan: TrainingPlan) -> Finding:
    need = sorted(_NEED_SPLIT & set(plan.audits))
    if not need or plan.split:
        return Finding("audit_without_split", "audits and data", "a split" if plan.split else "no audit needs one")
    return Finding(
        "audit_without_split",
        "audits and data",
        f"{', '.join(need)} without a MembershipSplit",
        "nobody would know who is a member; the audit refuses when training starts",
        "wrap the data: `class_path: MembershipSplit, init_args: {inner: ...}`",
        "block",
    )


def _no_evidence(plan: TrainingPlan) -> Finding:
    name, looked = "no_evidence", "eval_member and holdout"
    if not plan.split:
        return Finding(name, looked, "no split", severity="unknown")
    fits = {"membership", "attribute"} & set(plan.audits)
    needed = {"eval_member", "holdout"} | ({"aux_member", "attack_nonmember"} if fits else set())
    if plan.audits and (empty := sorted(r for r in needed if plan.roles.get(r) == 0)):
        return Finding(
            name,
            "roles",
            f"no record in {', '.join(empty)}",
            "the audit refuses when training starts: attacks are fitted and judged on these roles",
            "raise their fractions in MembershipSplit",
            "block",
        )
    members, nonmembers = plan.roles.get("eval_member"), plan.roles.get("holdout")
    if members is None or nonmembers is None:
        return Finding(
            name, looked, "sizes not known without data", remedy="tell the size of the pool: --records N", severity="unknown"
        )  # fmt: skip
    counts = f"{members} members against {nonmembers} non-members"
    best = epsilon_from_counts(members, members, 0, nonmembers) if min(members, nonmembers) > 0 else 0.0
    if best > 0:
        return Finding(name, looked, f"{counts}: an attack without error would show epsilon {best:.2f}")
    return Finding(
        name,
        looked,
        counts,
        "even an attack without a single error shows nothing at 95 % with so few records",
        "use a larger pool or larger fractions of `member` and `holdout`",
        "block",
    )


def _low_fpr(plan: TrainingPlan) -> Finding:
    nonmembers = plan.roles.get("holdout")
    if "membership" not in plan.audits:
        return Finding("low_fpr_unsupported", "holdout", "no membership audit")
    if nonmembers is None:
        return Finding("low_fpr_unsupported", "holdout", "size not known without data", severity="unknown")
    failing = [rate for rate in (0.05, 0.01, 0.001) if not low_fpr_validity(rate, nonmembers)[0]]
    if not failing:
        return Finding("low_fpr_unsupported", "holdout", f"{nonmembers} records support a false-positive rate of 0.1 %")
    return Finding(
        "low_fpr_unsupported",
        "holdout",
        low_fpr_validity(failing[0], nonmembers)[1],
        "the rates that reviewers ask for (arXiv 2112.03570) will be marked invalid, because fewer than ten false alarms "
        "would decide them",
        "enlarge `holdout`, or claim only what the counts support",
        "warn",
    )


def _shadows(plan: TrainingPlan) -> Finding:
    count = (plan.audits.get("membership") or {}).get("shadows")
    if not isinstance(count, int) or count == 0:
        return Finding("shadow_count", "audits.membership.shadows", "no shadow models")
    if count % 2 or count < FEW_SHADOWS:
        return Finding(
            "shadow_count",
            "audits.membership.shadows",
            str(count),
            "each record should be in exactly half of the shadow models, which an odd number cannot give"
            if count % 2
            else "so few scores a record do not tell its variance (arXiv 2603.11799): LiRA is then weaker than it looks",
            f"use an even number, at least {FEW_SHADOWS}, or read RMIA and fixed variance instead",
            "warn",
        )
    return Finding("shadow_count", "audits.membership.shadows", str(count))


def _adaptive(plan: TrainingPlan) -> Finding:
    without = [d.name for d in plan.defences if not d.adaptive_attacks]
    if not plan.defences:
        return Finding("no_adaptive_attack", "defences", "undefended")
    if without or not {"membership", "inversion", "leakage"} & set(plan.audits):
        what = f"no attack knows {', '.join(without)}" if without else "no audit runs the adaptive attacks"
        return Finding(
            "no_adaptive_attack",
            "defences and audits",
            what,
            "attacks that do not know a defence understate the leak by up to an order of magnitude (arXiv 2404.17399); "
            "the verdict will be insufficient evidence",
            "audit with `membership`, `inversion` or `leakage`, and name an attack in the defence's `adaptive_attacks`",
            "warn",
        )
    return Finding("no_adaptive_attack", "defences", "each has an attack that knows it")


def _memorisation(plan: TrainingPlan) -> Finding:
    looked = "epochs x members / weights"
    members = plan.roles.get("member") if plan.split else plan.records
    if plan.epochs is None or members is None or plan.parameters is None:
        gaps = {"epochs": plan.epochs, "records trained on": members, "weights": plan.parameters}
        missing = ", ".join(name for name, value in gaps.items() if value is None)
        return Finding(
            "expected_memorisation", looked, f"{missing} not known from the configuration", severity="unknown"
        )
    visits = plan.epochs * members / plan.parameters
    text = f"{plan.epochs} x {members} / {plan.parameters} = {visits:.3g} readings of a record for each weight"
    if plan.parameters > members and plan.epochs >= MANY_EPOCHS:
        return Finding(
            "expected_memorisation",
            looked,
            text,
            "more weights than records, and each record read often: such a network can fit any labels (arXiv "
            "1611.03530). True of every deep network, so it says what can happen and not what does",
            "nothing by itself; let `audits.structural` count the parameters that were used",
            "note",
        )
    return Finding("expected_memorisation", looked, text)


def _regularisation(plan: TrainingPlan) -> Finding:
    looked = "weight decay, augmentation, early stopping, epochs"
    if plan.epochs is None:
        return Finding("no_regularisation", looked, "the number of epochs is not known", severity="unknown")
    if plan.early_stopping or plan.augment or plan.weight_decay or plan.epochs < MANY_EPOCHS:
        parts = [("early stopping", plan.early_stopping), ("augmentation", plan.augment), ("decay", plan.weight_decay)]
        have = ", ".join(name for name, on in parts if on)
        return Finding("no_regularisation", looked, have or f"{plan.epochs} epochs")
    unknown = [n for n, v in (("weight decay", plan.weight_decay), ("augmentation", plan.augment)) if v is None]
    if unknown:
        return Finding(
            "no_regularisation", looked, f"{', '.join(unknown)} not known from the configuration", severity="unknown"
        )
    return Finding(
        "no_regularisation",
        looked,
        f"none of them at {plan.epochs} epochs",
        "the training loss can fall to zero on every record, which is what membership attacks read (arXiv 1709.01604). "
        "Regularisation narrows that gap; it is a control and no guarantee (arXiv 2404.17399)",
        "stop early on `val/loss`, or state that the undefended, overfitted model is the point",
        "warn",
    )


def _batch(plan: TrainingPlan) -> Finding:
    if plan.batch_size is None:
        return Finding("batch_of_one", "batch_size", "not known from the configuration", severity="unknown")
    if plan.batch_size > 1:
        return Finding("batch_of_one", "batch_size", str(plan.batch_size))
    return Finding(
        "batch_of_one",
        "batch_size",
        "1",
        "each update is one record's gradient, from which its picture can be rebuilt where updates are seen (arXiv "
        "2003.14053)",
        "use larger batches where gradients or checkpoints of neighbouring steps leave the machine",
        "warn",
    )


def _smoothing(plan: TrainingPlan) -> Finding:
    if not plan.label_smoothing and not plan.mixup:
        return Finding("soft_labels", "label_smoothing, mixup", "neither")
    if plan.label_smoothing:
        return Finding(
            "soft_labels",
            "label_smoothing",
            f"{plan.label_smoothing:g}",
            "smoothing looks like regularisation, but it was found to raise membership risk consistently (Kaya and "
            "Dumitras, ICML 2021) and, with positive factors, to help model inversion (arXiv 2310.06549)",
            "do not count it as a defence; compare with a run without it",
            "warn",
        )
    return Finding(
        "soft_labels",
        "mixup",
        f"{plan.mixup:g}",
        "its training loss belongs to pairs of records, so defences on single records' losses do not apply, and "
        "augmentation that helps accuracy was not found to lower membership risk by itself (Kaya and Dumitras, ICML 2021)",
        "do not count it as a defence",
        "note",
    )


def _schedule(plan: TrainingPlan) -> Finding:
    if plan.lr_scheduler is None:
        return Finding("schedule_ends_at_zero", "lr_scheduler", "none found")
    name, arguments = plan.lr_scheduler
    if name not in _ENDS_AT_ZERO or (name == "CosineAnnealingLR" and (arguments.get("eta_min") or 0.0) > 0):
        return Finding("schedule_ends_at_zero", "lr_scheduler", name)
    return Finding(
        "schedule_ends_at_zero",
        "lr_scheduler",
        f"{name} ends at (nearly) zero",
        "the last steps lose the gradient noise of the others and settle on the training records; earlier checkpoints "
        "leak differently, and no sign is claimed here",
        "audit the checkpoint that will be released, and shadows trained with the same schedule",
        "note",
    )


def _pretrained(plan: TrainingPlan) -> Finding:
    if plan.pretrained is None:
        return Finding("pretrained_weights", "pretrained", "none")
    return Finding(
        "pretrained_weights",
        "pretrained",
        plan.pretrained,
        "a non-member of this training may have been in the pre-training: the audit is of the fine-tuning alone",
        "say so in the release, and hold out records that are younger than the weights where you can",
        "note",
    )


def _canaries(plan: TrainingPlan) -> Finding:
    looked, audited = "canaries", "canaries" in plan.audits
    if plan.canaries is None:
        if not audited:
            return Finding("canaries", looked, "none planted")
        return Finding(
            "canaries",
            looked,
            "audits.canaries without CanaryData",
            "the audit refuses when training starts: there is no coin to guess",
            "wrap the split: `class_path: CanaryData, init_args: {inner: {class_path: MembershipSplit, ...}}`",
            "block",
        )
    if not audited:
        return Finding(
            "canaries",
            looked,
            f"{plan.canaries} planted, none audited",
            "they cost accuracy and nothing reads them",
            "add `audits: {canaries: {}}`",
            "warn",
        )
    guesses = 2 * (plan.canaries // 2)
    best = one_run_epsilon(canaries=plan.canaries, guesses=guesses, right=guesses, level=1 - 0.05 / 3)
    if best > 0:
        return Finding("canaries", looked, f"{plan.canaries}: all guessed right would show epsilon {best:.2f}")
    return Finding(
        "canaries",
        looked,
        f"{plan.canaries}",
        "all coins guessed right would still show nothing at 95 %",
        "plant at least 6, better some hundreds",
        "block",
    )


def _one_seed(plan: TrainingPlan) -> Finding:
    if not plan.split:
        return Finding("one_split_seed", "split_seed", "no split")
    return Finding(
        "one_split_seed",
        "split_seed",
        "one",
        "one split says nothing about other splits of the same records",
        "run at least five split seeds before you claim a difference",
        "note",
    )


RULES: tuple[Callable[[TrainingPlan], Finding], ...] = (
    _no_audit,
    _audit_without_split,
    _no_evidence,
    _low_fpr,
    _shadows,
    _adaptive,
    _canaries,
    _memorisation,
    _regularisation,
    _batch,
    _smoothing,
    _schedule,
    _pretrained,
    _one_seed,
)
"""In the order in which they are shown."""
