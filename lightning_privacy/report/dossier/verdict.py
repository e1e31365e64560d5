"""The verdict: a policy held against the evidence, where missing evidence never releases and a worse number never helps.

Order of verdicts, from best to worst: ``go``, ``conditional``, ``insufficient_evidence``, ``no_go``.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime

from lightning_privacy.report.dossier.decisions import PeopleDecisions, waived_rules, waiver_sentences
from lightning_privacy.report.dossier.findings import check_names, claim_findings, rule_findings, strongest
from lightning_privacy.report.dossier.models import AttackEntry, Decision, Evidence, Finding, Verdict
from lightning_privacy.report.dossier.policy import Policy
from lightning_privacy.report.dossier.sentences import decision_summary

__all__ = ["EXIT_CODES", "ORDER", "decide", "strongest"]

ORDER: tuple[Verdict, ...] = ("go", "conditional", "insufficient_evidence", "no_go")
EXIT_CODES: dict[Verdict, int] = {"go": 0, "conditional": 10, "no_go": 20, "insufficient_evidence": 30}
"""Exit codes of ``lightning-privacy gate``; 1 and 2 are errors."""


def decide(
    evidence: Evidence,
    policy: Policy,
    known_attacks: Sequence[str] = (),
    people: PeopleDecisions | None = None,
    today: date | None = None,
) -> Decision:
    """Hold a policy against the evidence.

    Args:
        evidence: What is known of the model.
        policy: The rules.
        known_attacks: Names of attacks that exist; a rule that names another one is refused as misspelt.
        people: Waivers, each of which turns a blocking rule into a warning, and sign-offs. What is missing and a broken
            claim of differential privacy cannot be waived.
        today: On which day waivers must hold; the present one in UTC if None.

    Returns:
        ``no_go`` where a blocking rule is hit and not waived; else ``insufficient_evidence`` where something needed is
        missing; else ``conditional`` where a warning is hit; else ``go``.

    Raises:
        InputError: a rule names an attack that neither ran nor exists, or a waiver a rule that cannot be waived.
    """
    people, today = people or PeopleDecisions(), today or datetime.now(UTC).date()
    waived = waived_rules(people.waivers, policy, today)
    judged = [finding for rule in policy.rules for finding in rule_findings(rule, evidence, known_attacks)]
    claimed = claim_findings(evidence, judged)
    findings = [*judged, *claimed]
    gaps = [*evidence.gaps, *_missing_attacks(evidence, policy, known_attacks), *_failed_attacks(evidence)]
    if not evidence.attacks:
        gaps.append("No attack was run on this model, so that nothing is known of what it leaks.")
    lenient = {rule.id for rule in policy.rules if rule.missing == "conditional"}
    hit = [f for f in findings if f.outcome in ("shown", "not_excluded")]
    blocked = [f for f in hit if f.severity == "block" and (f in claimed or f.rule not in waived)]
    unclear = [f for f in findings if not f.conclusive and f not in blocked and (f in claimed or f.rule not in lenient)]
    warned = [f for f in findings if f not in unclear and f not in blocked and (f in hit or not f.conclusive)]
    verdict: Verdict
    if blocked:
        verdict, chosen = "no_go", blocked
    elif unclear or gaps:
        verdict, chosen = "insufficient_evidence", unclear
    elif warned:
        verdict, chosen = "conditional", warned
    else:
        verdict, chosen = "go", []
    reasons = _grouped(chosen)
    if verdict in ("no_go", "insufficient_evidence"):
        reasons += gaps
        reasons += [r for r in _grouped([*unclear, *warned]) if r not in reasons]
    return Decision(
        verdict=verdict,
        summary=decision_summary(verdict, policy, chosen, gaps),
        reasons=list(dict.fromkeys([*reasons, *waiver_sentences(people.waivers, today)])),
        findings=findings,
        waivers=people.waivers,
        signoff=people.signoff,
    )


def _grouped(findings: Sequence[Finding]) -> list[str]:
    """Return one sentence a rule and outcome: that of the attack farthest beyond the limit, and the others' names."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.outcome), []).append(finding)
    said = []
    for group in groups.values():
        worst = min(group, key=lambda f: 0.0 if f.margin is None else f.margin)
        others = [f"`{f.attack}`" for f in group if f is not worst and f.attack]
        said.append(worst.sentence + (f" Likewise {', '.join(others)}." if others else ""))
    return said


def _missing_attacks(evidence: Evidence, policy: Policy, known: Sequence[str]) -> list[str]:
    """Return the required attacks that say nothing: those that did not run, failed, or did not converge."""
    check_names(policy.required_attacks, evidence, known, "`required_attacks`")
    gaps = []
    for name in policy.required_attacks:
        lacks = [_lacks(attack) for attack in evidence.attacks if attack.name == name] or ["was not run"]
        if all(lacks):
            gaps.append(f"The policy requires the attack `{name}`, which {lacks[0]}.")
    return gaps


def _lacks(attack: AttackEntry) -> str:
    """Return why an attack is no evidence; empty if it is."""
    if attack.failed:
        return f"failed ({attack.failed})"
    if not attack.converged:
        return "did not converge"
    return "" if any(m.valid and m.value is not None for m in attack.metrics.values()) else "gave no valid number"


def _failed_attacks(evidence: Evidence) -> list[str]:
    return [
        f"The attack `{a.name}` failed ({a.failed}), so that what it would have found is not known."
        for a in evidence.attacks
        if a.failed
    ]
