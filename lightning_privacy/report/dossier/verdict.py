"""The verdict: a policy held against the evidence, where missing evidence never releases and a worse number never helps.

Order of verdicts, from best to worst: ``go``, ``conditional``, ``insufficient_evidence``, ``no_go``.
"""

import operator
from collections.abc import Callable, Sequence

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.metric_names import is_of_run, metric_label
from lightning_privacy.report.dossier.models import AttackEntry, Decision, Evidence, Finding, Number, Verdict
from lightning_privacy.report.dossier.observe import attack_number, run_number
from lightning_privacy.report.dossier.policy import CLAIMED_EPSILON, Policy, Rule

__all__ = ["EXIT_CODES", "ORDER", "decide", "strongest"]

ORDER: tuple[Verdict, ...] = ("go", "conditional", "insufficient_evidence", "no_go")
EXIT_CODES: dict[Verdict, int] = {"go": 0, "conditional": 10, "no_go": 20, "insufficient_evidence": 30}
"""Exit codes of ``lightning-privacy gate``; 1 and 2 are errors."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_BROKEN_CLAIM = Rule(
    id="broken-claim",
    metric="epsilon_lower",
    threshold=CLAIMED_EPSILON,
    use="point",
    severity="block",
    origin="always in force: a lower bound above the claimed epsilon refutes the claim",
)


def decide(evidence: Evidence, policy: Policy, known_attacks: Sequence[str] = ()) -> Decision:
    """Hold a policy against the evidence.

    Args:
        evidence: What is known of the model.
        policy: The rules.
        known_attacks: Names of attacks that exist; a rule that names another one is refused as misspelt.

    Returns:
        ``no_go`` where a blocking rule is hit; else ``insufficient_evidence`` where something needed is missing; else
        ``conditional`` where a warning is hit; else ``go``.

    Raises:
        InputError: a rule names an attack that neither ran nor exists.
    """
    findings = [finding for rule in policy.rules for finding in _findings(rule, evidence, known_attacks)]
    if not any(f.rule == r.id for f in findings for r in policy.rules if _is_claim_rule(r)):
        findings += [f for f in _claim_findings(evidence) if f.outcome in ("shown", "not_excluded")]
    gaps = [*evidence.gaps, *_missing_attacks(evidence, policy, known_attacks)]
    if not evidence.attacks:
        gaps.append("No attack was run on this model, so that nothing is known of what it leaks.")
    missing = {rule.id: rule.missing for rule in policy.rules}
    hit = [f for f in findings if f.outcome in ("shown", "not_excluded")]
    blocked = [f for f in hit if f.severity == "block"]
    unclear = [f for f in findings if not f.conclusive and f not in blocked and missing.get(f.rule) != "conditional"]
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
        summary=_summary(verdict, policy, chosen, gaps),
        reasons=list(dict.fromkeys(reasons)),
        findings=findings,
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


def strongest(attacks: Sequence[AttackEntry], family: str = "membership") -> AttackEntry | None:
    """Return the attack that fit data chose, else the best one on fit data, else the only one, else None.

    Never the one with the largest number on the evaluated records: that would be choosing after looking.
    """
    here = [a for a in attacks if a.family == family]
    marked = [a for a in here if a.strongest]
    if marked:
        return marked[-1]
    fitted = [a for a in here if a.fit_auroc is not None]
    if fitted:
        return max(fitted, key=lambda a: a.fit_auroc or 0.0)
    return here[0] if len(here) == 1 else None


def _is_claim_rule(rule: Rule) -> bool:
    selects_all = rule.attacks in (None, "all")
    return (
        rule.metric == "epsilon_lower"
        and rule.threshold == CLAIMED_EPSILON
        and rule.severity == "block"
        and selects_all
    )


def _claim_findings(evidence: Evidence) -> list[Finding]:
    """Hold the claimed epsilon against every attack of every family that gives a bound."""
    if evidence.claims is None:
        return []
    return [_judge(_BROKEN_CLAIM, evidence, a) for a in evidence.attacks if "epsilon_lower" in a.metrics]


def _findings(rule: Rule, evidence: Evidence, known: Sequence[str]) -> list[Finding]:
    if rule.threshold == CLAIMED_EPSILON and evidence.claims is None:
        said = "The run claims no epsilon, so that there is no claim to break."
        return [_finding(rule, None, None, None, "not_applicable", True, said)]
    if is_of_run(rule.metric):
        return [_judge(rule, evidence, None)]
    here = [a for a in evidence.attacks if a.family == rule.family]
    if rule.metric == "epsilon_lower":
        # An audit of any family may give a bound; where one does, no attack of the rule's family may be silent.
        bounds = [a for a in evidence.attacks if "epsilon_lower" in a.metrics]
        here = [a for a in evidence.attacks if a in bounds or a in here] if bounds else []
    if isinstance(rule.attacks, list):
        _check_names(rule.attacks, evidence, known, f"Rule `{rule.id}`")
        absent = [
            _unknown(rule, f"the attack `{n}` was not run", n) for n in rule.attacks if n not in {a.name for a in here}
        ]
        return absent + [_judge(rule, evidence, a) for a in here if a.name in rule.attacks]
    if not here:
        kind = "attack that bounds epsilon from below" if rule.metric == "epsilon_lower" else f"{rule.family} attack"
        return [_unknown(rule, f"there is no {kind}")]
    if rule.attacks == "strongest":
        top = strongest(here, rule.family)
        if top is None:
            return [_unknown(rule, f"no {rule.family} attack was chosen as the strongest on fit data")]
        return [_judge(rule, evidence, top)]
    return [_judge(rule, evidence, a) for a in here]


def _judge(rule: Rule, evidence: Evidence, attack: AttackEntry | None) -> Finding:
    if attack is None:
        number, who = run_number(evidence, rule.metric), ""
    else:
        number, who = attack_number(attack, rule.metric), f" of `{attack.name}`"
    threshold = evidence.claims.epsilon if rule.threshold == CLAIMED_EPSILON and evidence.claims else rule.threshold
    limit = float(threshold)
    name = attack.name if attack else None
    wrong = "" if number.value is not None and number.valid else number.reason or "it is not valid"
    if attack is not None and attack.failed:
        wrong = f"the attack failed ({attack.failed})"
    if wrong:
        return _unknown(rule, f"{metric_label(rule.metric)}{who}: {wrong}", name)
    doubt = _doubt(rule, attack, number)
    low, high = _ends(number)
    risk = rule.op in (">", ">=")
    end = {"upper_ci": high, "lower_ci": low, "point": number.value}[rule.use]
    beyond = _OPERATORS[rule.op]
    hit = beyond(end, limit)
    if hit and (why := _refutes_nothing(rule, evidence, attack)):
        return _unknown(
            rule, f"{metric_label(rule.metric)}{who} is {number.value:.4g}, above the claim, but {why}", name
        )
    # Whether even the end of the interval that speaks for the model is beyond the limit; without an interval nothing is
    # shown, except by a bound, which is an end itself.
    has_interval = number.low is not None and number.high is not None
    shown = hit and (rule.metric == "epsilon_lower" or (has_interval and beyond(low if risk else high, limit)))
    outcome = "shown" if shown else "not_excluded" if hit else "no_evidence" if doubt else "passed"
    margin = (limit - end) if risk else (end - limit)
    said = _sentence(rule, number, who, limit, outcome, doubt)
    return _finding(rule, name, end, limit, outcome, not doubt, said, margin)


def _doubt(rule: Rule, attack: AttackEntry | None, number: Number) -> str:
    """Return why a number cannot clear its rule even where it is within the limit; empty if it can."""
    wanted = {"upper_ci": number.high, "lower_ci": number.low, "point": number.value}[rule.use]
    if wanted is None:
        return f"it has no interval, and the rule compares the {'upper' if rule.use == 'upper_ci' else 'lower'} end"
    if attack is not None and not attack.converged:
        return "the attacker did not converge, so that a longer fit might find more"
    return ""


def _refutes_nothing(rule: Rule, evidence: Evidence, attack: AttackEntry | None) -> str:
    """Return why a bound above the claimed epsilon does not refute it; empty if it does.

    (epsilon, delta) implies (epsilon, delta') for delta' >= delta alone, so that a bound at a smaller delta than the
    claim's refutes nothing. A bound that does not state its delta is taken at its word.
    """
    delta = attack.settings.get("delta") if attack is not None else None
    claimed = evidence.claims.delta if evidence.claims else None
    if rule.threshold != CLAIMED_EPSILON or not isinstance(delta, float | int) or claimed is None or delta >= claimed:
        return ""
    return f"it is a bound at delta {delta:g}, and the claim is at the larger {claimed:g}"


def _ends(number: Number) -> tuple[float, float]:
    value = number.value or 0.0
    return (
        value if number.low is None else min(value, number.low),
        value if number.high is None else max(value, number.high),
    )


def _missing_attacks(evidence: Evidence, policy: Policy, known: Sequence[str]) -> list[str]:
    _check_names(policy.required_attacks, evidence, known, "`required_attacks`")
    there = {a.name for a in evidence.attacks}
    return [
        f"The policy requires the attack `{n}`, which was not run." for n in policy.required_attacks if n not in there
    ]


def _check_names(names: Sequence[str], evidence: Evidence, known: Sequence[str], who: str) -> None:
    every = sorted({*known, *(a.name for a in evidence.attacks)})
    unknown = [n for n in names if n not in every]
    if unknown:
        raise InputError(f"{who} names the unknown attack `{unknown[0]}`. There are {', '.join(every) or 'none'}.")


def _unknown(rule: Rule, why: str, attack: str | None = None) -> Finding:
    said = f"No valid evidence for `{rule.id}`: {why}."
    limit = None if rule.threshold == CLAIMED_EPSILON else float(rule.threshold)
    return _finding(rule, attack, None, limit, "no_evidence", False, said)


def _finding(
    rule: Rule,
    attack: str | None,
    observed: float | None,
    threshold: float | None,
    outcome: str,
    conclusive: bool,
    sentence: str,
    margin: float | None = None,
) -> Finding:
    return Finding.model_validate(
        {
            "rule": rule.id,
            "severity": rule.severity,
            "attack": attack,
            "observed": observed,
            "threshold": threshold,
            "margin": margin,
            "outcome": outcome,
            "conclusive": conclusive,
            "sentence": sentence,
        }
    )


def _sentence(rule: Rule, number: Number, who: str, limit: float, outcome: str, doubt: str) -> str:
    interval = "" if number.low is None or number.high is None else f" [{number.low:.4g}, {number.high:.4g}]"
    said = f"{metric_label(rule.metric)}{who} is {number.value:.4g}{interval}"
    said = said[0].upper() + said[1:]
    bound = f"the limit {rule.op} {limit:g} of `{rule.id}`"
    risk = rule.op in (">", ">=")
    if outcome == "shown":
        text = (
            f"{'Shown to leak' if risk else 'Shown to fall short'}: {said}; even the favourable end is beyond {bound}"
        )
        if rule.metric == "epsilon_lower":
            text = f"Claim refuted: {said}, above the epsilon {limit:g} that the run claims"
    elif outcome == "not_excluded":
        text = f"Not shown to be {'safe' if risk else 'useful enough'}: {said}, and {_part(rule, number)} is beyond {bound}"
    elif outcome == "no_evidence":
        text = f"No valid evidence for `{rule.id}`: {said}, within its limit, but {doubt}"
    else:
        text = f"Within {bound}: {said}"
    return text + (f"; moreover, {doubt}." if doubt and outcome in ("shown", "not_excluded") else ".")


def _part(rule: Rule, number: Number) -> str:
    if rule.use == "point" or (number.high if rule.use == "upper_ci" else number.low) is None:
        return "the estimate"
    return "the upper end" if rule.use == "upper_ci" else "the lower end"


def _summary(verdict: Verdict, policy: Policy, chosen: Sequence[Finding], gaps: Sequence[str]) -> str:
    rules = len({f.rule for f in chosen})
    under = f"under the policy {policy.name}"
    if verdict == "no_go":
        shown = len({f.rule for f in chosen if f.outcome == "shown"})
        kind = "a leak is shown" if shown else "no leak is shown, but safety is not shown either"
        return f"Do not release {under}: {_count(rules, 'blocking rule')} hit; {kind}."
    if verdict == "insufficient_evidence":
        n = rules + len(gaps)
        return f"The evidence does not suffice to decide {under}: {_count(n, 'thing')} missing."
    if verdict == "conditional":
        return f"Nothing blocks {under}, but {_count(rules, 'warning')} to be decided by a person."
    return f"Every rule of the policy {policy.name} is met by valid evidence."


def _count(n: int, what: str) -> str:
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"
