"""Release policies: which number of which attack must stay within which limit, and where that limit comes from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.metric_names import FAMILIES, check_metric, is_of_run
from lightning_privacy.report.yaml_file import read_yaml
from lightning_privacy.resources import configs_folder

__all__ = ["CLAIMED_EPSILON", "Policy", "Rule", "first_problem", "load_policy", "policy_names"]

CLAIMED_EPSILON = "claimed_epsilon"
"""Threshold that stands for the epsilon which the run claims."""

_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rule(BaseModel):
    """One condition; it is hit where ``observed op threshold`` holds.

    Args:
        id: Name of the rule, unique in its policy.
        metric: What is compared; see `metric_names`.
        family: Family of the attacks.
        attacks: ``all`` (the worst decides; the default), ``strongest`` (as chosen on fit data), or a list of names;
            nothing for a metric of the run.
        op: Comparison that makes the rule hit. ``>`` and ``>=`` limit a risk, ``<`` and ``<=`` demand a utility.
        threshold: A number, or ``claimed_epsilon``.
        use: End of the 95 % interval that is compared, or the estimate itself. Where not given, the end that speaks
            against the model: the upper one for ``>`` and ``>=``, the lower one for ``<`` and ``<=``.
        severity: ``block`` forbids the release, ``warn`` asks for a person's decision.
        missing: What follows where there is no valid evidence: ``insufficient_evidence``, or ``conditional`` for a warning
            that not every model can be asked for. Neither is a release.
        origin: Where the limit comes from, in words.
    """

    model_config = _CONFIG
    id: str = Field(min_length=1)
    metric: str
    family: str = "membership"
    attacks: Literal["all", "strongest"] | list[str] | None = None
    op: Literal[">", ">=", "<", "<="] = ">"
    threshold: float | Literal["claimed_epsilon"]
    use: Literal["upper_ci", "lower_ci", "point"] = Field(default_factory=lambda rule: _unfavourable_end(rule))
    severity: Literal["block", "warn"]
    missing: Literal["insufficient_evidence", "conditional"] = "insufficient_evidence"
    origin: str = Field(min_length=1)

    @field_validator("threshold", mode="before")
    @classmethod
    def _no_flag(cls, threshold: Any) -> Any:
        if isinstance(threshold, bool):
            raise ValueError("a threshold is a number or `claimed_epsilon`, not true or false")
        return threshold


class Policy(BaseModel):
    """Rules for a release.

    Args:
        name: Its name.
        version: Raised when a rule changes.
        description: What it is for.
        required_attacks: Attacks without which nothing is released.
        rules: At least one.
    """

    model_config = _CONFIG
    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    description: str = ""
    required_attacks: list[str] = []
    rules: list[Rule] = Field(min_length=1)


def _unfavourable_end(rule: Mapping[str, Any]) -> Literal["upper_ci", "lower_ci"]:
    return "lower_ci" if rule.get("op") in ("<", "<=") else "upper_ci"


def policy_names() -> list[str]:
    """Return the names of the shipped policies.

    Example:
        >>> policy_names()
        ['research-default', 'sacro-compat']
    """
    return sorted(path.stem for path in (configs_folder() / "policies").glob("*.yaml"))


def load_policy(name: str | os.PathLike[str]) -> Policy:
    """Read a policy.

    Args:
        name: A shipped one's name, or the path of a YAML file.

    Raises:
        InputError: there is none of that name, it is no YAML, or a key, metric, selector or operator is unknown.
    """
    path = Path(name)
    if not path.is_file():
        if str(name) not in policy_names():
            raise InputError(
                f"There is no policy `{name}`: it is no file, and shipped are {', '.join(policy_names())}."
            )
        path = configs_folder() / "policies" / f"{name}.yaml"
    raw = read_yaml(path, "The policy")
    if not isinstance(raw, dict):
        raise InputError(f"The policy {path} is no mapping with `name`, `version` and `rules`.")
    try:
        policy = Policy.model_validate(raw)
    except ValidationError as wrong:
        raise InputError(f"The policy {path} cannot be used: {first_problem(wrong, raw)}") from wrong
    _check(policy, path)
    return policy


def first_problem(wrong: ValidationError, raw: Any) -> str:
    """Return the first problem of a file as one sentence: where, what was found, what there is.

    Args:
        wrong: What pydantic says.
        raw: What the file holds.
    """
    every = wrong.errors(include_url=False, include_context=True)
    # Of a union's branches the first tells what is allowed in words.
    problem = every[0]
    place = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
    where = " -> ".join(_named(raw, place, depth) for depth in range(len(place)))
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{place[-1]}` at {where}; {_keys_there(raw, place)}."
    found = problem["input"]
    shown = f" (found `{found}`)" if isinstance(found, str | int | float | bool) else ""
    if problem["type"] == "missing":
        return f"`{place[-1]}` is missing at {where}."
    if place[:1] == ["rules"] and "attacks" in place:
        return f"unknown attack selector at {where}{shown}; there are `all`, `strongest`, or a list of attack names."
    return f"{where}: {problem['msg']}{shown}."


def _named(raw: Any, place: list[int | str], depth: int) -> str:
    """Return one step of a place; a rule by its id rather than its number."""
    part = place[depth]
    if not isinstance(part, int):
        return str(part)
    here: Any = raw
    for step in place[: depth + 1]:
        here = here[step] if isinstance(here, list | dict) else None  # pyright: ignore[reportArgumentType, reportCallIssue]
    name = here.get("id") if isinstance(here, dict) else None
    return f"rule `{name}`" if isinstance(name, str) else f"[{part}]"


def _keys_there(raw: Any, place: list[int | str]) -> str:
    inside_rule = len(place) > 1 and place[0] == "rules"
    model: type[BaseModel] = Rule if inside_rule else Policy
    if isinstance(raw, dict) and "schema_version" in raw:
        return "this schema has no such key"
    return f"there are {', '.join(model.model_fields)}"


def _check(policy: Policy, path: Path) -> None:
    seen: set[str] = set()
    for rule in policy.rules:
        said = f"Rule `{rule.id}` of the policy {path}"
        if rule.id in seen:
            raise InputError(f"{said} is there twice; give each rule an id of its own.")
        seen.add(rule.id)
        if rule.family not in FAMILIES:
            raise InputError(f"{said} names the unknown family `{rule.family}`; there are {', '.join(FAMILIES)}.")
        try:
            check_metric(rule.metric, rule.family)
        except InputError as wrong:
            raise InputError(f"{said}: {wrong}") from wrong
        if is_of_run(rule.metric) and rule.attacks is not None:
            raise InputError(f"{said} selects attacks, but `{rule.metric}` is of the run; remove `attacks`.")
        if rule.metric == "epsilon_lower" and rule.attacks == "strongest":
            raise InputError(f"{said} asks for the strongest attack, but every bound of epsilon counts; write `all`.")
        if rule.threshold == CLAIMED_EPSILON and rule.metric != "epsilon_lower":
            raise InputError(f"{said} compares {rule.metric} with the claimed epsilon; only epsilon_lower can be.")
        if rule.threshold == CLAIMED_EPSILON and rule.op in ("<", "<="):
            raise InputError(
                f'{said} is hit by bounds below the claimed epsilon, which break nothing; write `op: ">"`.'
            )
        favourable = {">": "lower_ci", ">=": "lower_ci", "<": "upper_ci", "<=": "upper_ci"}[rule.op]
        if rule.use == favourable and (rule.severity == "block" or rule.op in ("<", "<=")):
            end = "lower" if favourable == "lower_ci" else "upper"
            right = "point" if rule.metric == "epsilon_lower" else _unfavourable_end({"op": rule.op})
            raise InputError(
                f"{said} compares the {end} end by `{rule.op}`: the end that speaks for the model, so that few records "
                f"release it. Write `use: {right}`."
            )
        if rule.attacks == []:
            raise InputError(f"{said} selects no attack; name some, or write `all` or `strongest`.")
        if rule.missing == "conditional" and rule.severity == "block":
            raise InputError(
                f"{said} blocks, so that missing evidence cannot be `conditional`; remove `missing` or make it a warning."
            )
