"""One rule held against the evidence: what it finds, and what speaks against believing it."""

import operator
from collections.abc import Callable, Sequence

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.metric_names import is_of_run, metric_label
from lightning_privacy.report.dossier.models import AttackEntry, Evidence, Finding, Number
from lightning_privacy.report.dossier.observe import attack_number, run_number, sides
from lightning_privacy.report.dossier.policy import CLAIMED_EPSILON, Rule
from lightning_privacy.report.dossier.sentences import finding_sentence

__all__ = ["check_names", "claim_findings", "rule_findings", "strongest"]

_LEVEL = 0.95  # coverage of the intervals that policies speak of
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


def claim_findings(evidence: Evidence, judged: Sequence[Finding]) -> list[Finding]:
    """Hold the claimed epsilon against every bound of every family, whatever the policy says of it.

    Args:
        evidence: What is known of the model.
        judged: What the policy's rules found; what they say in the same way is not said twice.

    Returns:
        Bounds above the claim: those that refute it, and those that do not count but leave it in doubt.
    """
    if evidence.claims is None:
        return []
    found = []
    for attack in evidence.attacks:
        bound = attack.metrics.get("epsilon_lower")
        if bound is None or bound.value is None or bound.value <= evidence.claims.epsilon:
            continue
        finding = _judge(_BROKEN_CLAIM, evidence, attack)
        if not any(_same(finding, other) for other in judged):
            found.append(finding)
    return found


def _same(one: Finding, other: Finding) -> bool:
    """Return whether two findings say the same of one attack, but for the name of the rule and its words."""
    apart = {"rule": "", "sentence": "", "margin": None}
    about_claim = one.sentence.replace(f"`{one.rule}`", "") == other.sentence.replace(f"`{other.rule}`", "")
    return about_claim and one.model_copy(update=apart) == other.model_copy(update=apart)


def rule_findings(rule: Rule, evidence: Evidence, known: Sequence[str] = ()) -> list[Finding]:
    """Return what a rule says of the evidence, one finding an attack, or one of the run.

    Args:
        rule: The rule.
        evidence: What is known of the model.
        known: Names of attacks that exist.

    Raises:
        InputError: the rule names an attack that neither ran nor exists.
    """
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
        check_names(rule.attacks, evidence, known, f"Rule `{rule.id}`")
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
    said = finding_sentence(rule, number, who, limit, outcome, doubt)
    return _finding(rule, name, end, limit, outcome, not doubt, said, margin)


def _doubt(rule: Rule, attack: AttackEntry | None, number: Number) -> str:
    """Return why a number cannot clear its rule even where it is within the limit; empty if it can."""
    wanted = {"upper_ci": number.high, "lower_ci": number.low, "point": number.value}[rule.use]
    if wanted is None:
        return f"it has no interval, and the rule compares the {'upper' if rule.use == 'upper_ci' else 'lower'} end"
    if number.level < _LEVEL:
        return f"its interval covers {100 * number.level:g} % and not {100 * _LEVEL:g} %"
    if attack is not None and attack.family == "membership" and sides(attack) is None:
        return "the attack does not say on how many members and non-members it was judged"
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


def check_names(names: Sequence[str], evidence: Evidence, known: Sequence[str], who: str) -> None:
    """Refuse a name that is no attack.

    Args:
        names: What is named.
        evidence: Whose attacks exist.
        known: Further attacks that exist.
        who: Who names them, for the error.

    Raises:
        InputError: a name is unknown.
    """
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
