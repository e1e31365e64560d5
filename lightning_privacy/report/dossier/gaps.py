"""What was asked for and is not there: each such gap forbids a release."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_privacy.core import registry
from lightning_privacy.core.results import AttackResult
from lightning_privacy.report.run_settings import arguments_of
from lightning_privacy.report.summary import RunSummary

__all__ = ["INSUFFICIENT", "missing_evidence"]

INSUFFICIENT = "insufficient_evidence:"
"""With this begins a note of a result that says what is missing."""


def missing_evidence(results: Sequence[AttackResult], summary: RunSummary) -> list[str]:
    """Return what the results call missing, what ran before and not on this model, and what was configured and never ran.

    Args:
        results: Results on the model that is to be released.
        summary: The run.
    """
    notes = [n for r in results for n in r.notes if n.startswith(INSUFFICIENT)]
    gaps = [n.removeprefix(INSUFFICIENT).strip() for n in notes]
    gaps = [g[0].upper() + g[1:] for g in dict.fromkeys(gaps) if g]
    there = {(r.family, r.attack) for r in results}
    # What was run before training, on purpose, is no substitute that a later audit should have replaced.
    earlier = {(r.family, r.attack) for r in summary.results if not r.attack.startswith("initial/")} - there
    gaps += [f"The attack `{attack}` was run on an earlier model and not on this one." for _, attack in sorted(earlier)]
    named = {attack for _, attack in there | earlier}
    for name, spec in summary.audits.items():
        gaps += _of_audit(name, arguments_of(spec), results, named, summary)
    return gaps


def _of_audit(
    name: str, args: Mapping[str, Any], results: Sequence[AttackResult], named: set[str], summary: RunSummary
) -> list[str]:
    """Return what one configured audit should have left behind and did not."""
    family = _family(name)
    mine = [r for r in results if r.family == family]
    measured = any(m["kind"] in (name, family) and m["step"] == summary.steps for m in summary.measurements)
    gaps = []
    if not mine and not measured:
        gaps.append(f"The configuration asks for the audit `{name}`, of which there is no result on this model.")
    asked = args.get("attacks")
    if name == "membership" and isinstance(asked, list):
        gaps += [
            f"The configuration asks for the attack `{a}`, of which there is no result."
            for a in asked
            if a not in named
        ]
    shadows = args.get("shadows")
    wanted = isinstance(shadows, int) and shadows > 0
    if wanted and not any(r.extra.get("shadows") for r in mine):
        gaps.append(
            f"The configuration asks for {shadows} shadow models in the audit `{name}`, and no attack on this model used "
            "any; run `lightning-privacy audit`."
        )
    return gaps


def _family(audit: str) -> str:
    """Return the family of an audit's results: what its class says, else its name."""
    if audit not in registry.audit_names():
        return audit
    return str(getattr(registry.AUDITS.load(audit), "family", audit))
