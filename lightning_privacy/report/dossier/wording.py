"""A dossier's numbers and rules as text, the same on the page, in the card and at the terminal."""

from collections.abc import Mapping

from lightning_privacy.report.dossier.metric_names import is_of_run, metric_label
from lightning_privacy.report.dossier.models import Number, Verdict
from lightning_privacy.report.dossier.policy import Rule

__all__ = ["VERDICTS", "interval_text", "number_text", "rule_text", "value_text"]

VERDICTS: Mapping[Verdict, str] = {
    "go": "Go",
    "conditional": "Conditional",
    "no_go": "No go",
    "insufficient_evidence": "Insufficient evidence",
}


def number_text(number: Number | None) -> str:
    """Return a number with its interval; a dagger marks one that its sample cannot support.

    Example:
        >>> number_text(Number(value=0.61241, low=0.5, high=0.71))
        '0.6124 [0.5, 0.71]'
    """
    interval = interval_text(number)
    return value_text(number) + (f" {interval}" if interval else "")


def value_text(number: Number | None) -> str:
    """Return a number without its interval."""
    if number is None or number.value is None:
        return "-"
    return f"{number.value:.4g}" + ("" if number.valid else " †")


def interval_text(number: Number | None) -> str:
    """Return the interval of a number, or nothing."""
    if number is None or number.low is None or number.high is None:
        return ""
    return f"[{number.low:.3g}, {number.high:.3g}]"


def rule_text(rule: Rule) -> str:
    """Return a rule as a sentence.

    Example:
        >>> rule_text(Rule(id="a", metric="auroc", threshold=0.6, severity="block", origin="here"))
        'block if the upper end of AUROC, of any membership attack, is > 0.6'
    """
    part = {"upper_ci": "the upper end of ", "lower_ci": "the lower end of ", "point": ""}[rule.use]
    whose = ""
    if isinstance(rule.attacks, list):
        whose = f", of {' or '.join(rule.attacks)},"
    elif rule.attacks == "strongest":
        whose = f", of the strongest {rule.family} attack,"
    elif not is_of_run(rule.metric):
        whose = ", of any attack," if rule.metric == "epsilon_lower" else f", of any {rule.family} attack,"
    limit = rule.threshold.replace("_", " ") if isinstance(rule.threshold, str) else f"{rule.threshold:g}"
    return f"{rule.severity} if {part}{metric_label(rule.metric)}{whose} is {rule.op} {limit}"
