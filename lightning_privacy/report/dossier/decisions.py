"""What people decide beside the rules: waivers, which let a model past a rule, and sign-offs."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.policy import CLAIMED_EPSILON, Policy
from lightning_privacy.report.yaml_file import read_yaml

__all__ = ["PeopleDecisions", "SignOff", "Waiver", "load_decisions", "waived_rules", "waiver_sentences"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Waiver(_Part):
    """A person's leave to go past one blocking rule, which then only warns.

    Args:
        rule: The rule's id.
        by: Who gives it.
        reason: Why.
        until: Last day on which it holds; without one it holds for good.
    """

    rule: str = Field(min_length=1)
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    until: date | None = None


class SignOff(_Part):
    """A person's name under a dossier.

    Args:
        by: Who.
        role: In which office.
        on: When.
        statement: What is stated.
    """

    by: str = Field(min_length=1)
    role: str = ""
    on: date
    statement: str = Field(min_length=1)


class PeopleDecisions(_Part):
    """What people decided, as a file holds it."""

    waivers: list[Waiver] = []
    signoff: list[SignOff] = []


def load_decisions(path: Path | None) -> PeopleDecisions:
    """Read waivers and sign-offs.

    Args:
        path: A YAML file with ``waivers`` and ``signoff``; None for none.

    Raises:
        InputError: it cannot be read, or a key is missing, unknown or of another kind.
    """
    if path is None:
        return PeopleDecisions()
    try:
        return PeopleDecisions.model_validate(read_yaml(path, "The decisions"))
    except ValidationError as wrong:
        place = " -> ".join(map(str, wrong.errors()[0]["loc"])) or "the file"
        raise InputError(
            f"The decisions {path}: {place}: {wrong.errors()[0]['msg']}. `waivers` is a list of rule, by, reason and, if it "
            "ends, until; `signoff` one of by, on, statement and, if any, role; days are written 2026-01-31."
        ) from wrong


def waived_rules(waivers: Sequence[Waiver], policy: Policy, today: date) -> set[str]:
    """Return the ids of the blocking rules that a waiver turns into warnings today.

    Args:
        waivers: What people gave.
        policy: Whose rules.
        today: The day.

    Raises:
        InputError: a waiver names no rule of the policy, a rule that only warns, or the claim of differential privacy,
            which no person can make true.
    """
    rules = {rule.id: rule for rule in policy.rules}
    for waiver in waivers:
        rule = rules.get(waiver.rule)
        if rule is None:
            raise InputError(
                f"A waiver names the rule `{waiver.rule}`, which the policy {policy.name} does not have; it has "
                f"{', '.join(rules)}."
            )
        if rule.severity == "warn":
            raise InputError(
                f"A waiver names the rule `{waiver.rule}`, which only warns and blocks nothing; remove the waiver."
            )
        if rule.threshold == CLAIMED_EPSILON:
            raise InputError(
                f"A waiver names the rule `{waiver.rule}`, but a refuted claim of differential privacy stays refuted; "
                "withdraw the claim instead."
            )
    return {waiver.rule for waiver in waivers if waiver.until is None or today <= waiver.until}


def waiver_sentences(waivers: Sequence[Waiver], today: date) -> list[str]:
    """Return each waiver in words.

    Args:
        waivers: What people gave.
        today: The day.
    """
    said = []
    for each in waivers:
        if each.until is not None and today > each.until:
            said.append(f"The waiver of `{each.rule}` by {each.by} ended on {each.until}; the rule blocks.")
        else:
            end = f" until {each.until}" if each.until else ""
            said.append(f"`{each.rule}` is waived by {each.by}{end}: {each.reason.rstrip('.')}. It warns only.")
    return said
