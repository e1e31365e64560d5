"""Findings and verdicts in words."""

from collections.abc import Sequence

from lightning_privacy.report.dossier.metric_names import metric_label
from lightning_privacy.report.dossier.models import Finding, Number, Verdict
from lightning_privacy.report.dossier.policy import Policy, Rule

__all__ = ["decision_summary", "finding_sentence"]


def finding_sentence(rule: Rule, number: Number, who: str, limit: float, outcome: str, doubt: str) -> str:
    """Return a finding in words.

    Args:
        rule: The rule.
        number: What was compared.
        who: Whose number it is, as it follows the metric's name.
        limit: With what it was compared.
        outcome: What came of it.
        doubt: Why the number cannot clear the rule; empty if it can.
    """
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


def decision_summary(verdict: Verdict, policy: Policy, chosen: Sequence[Finding], gaps: Sequence[str]) -> str:
    """Return a verdict in one sentence.

    Args:
        verdict: The verdict.
        policy: What it was reached under.
        chosen: The findings that brought it about.
        gaps: What is missing beside them.
    """
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
