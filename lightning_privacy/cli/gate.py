"""The verb gate: may this model be released? The answer is an exit code, for a pipeline."""

import argparse
from pathlib import Path

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import Decision, Evidence
from lightning_privacy.report.dossier.policy import Policy, load_policy

__all__ = ["print_decision", "run"]


def run(verb: str, args: list[str]) -> int:
    """Print the verdict of a policy and the rules that brought it about.

    Returns:
        0 for go, 10 for conditional, 20 for no_go, 30 for insufficient_evidence.
    """
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Hold a run, or a dossier, against a release policy.",
        epilog="Exit codes: 0 go, 10 conditional, 20 no_go, 30 insufficient_evidence; 1 refused, 2 wrong usage.",
    )
    parser.add_argument("subject", type=Path, metavar="RUN|DOSSIER.json", help="folder of a run, or a dossier")
    parser.add_argument("--policy", default="research-default", help="a shipped policy's name, or a YAML file")
    parser.add_argument(
        "--decisions",
        type=Path,
        help="YAML file with `waivers` of blocking rules; those inside a dossier do not count here",
    )
    chosen = parser.parse_args(args)
    from lightning_privacy.report.dossier.build import known_attacks
    from lightning_privacy.report.dossier.decisions import load_decisions
    from lightning_privacy.report.dossier.verdict import EXIT_CODES, decide

    policy = load_policy(chosen.policy)
    decision = decide(_evidence(chosen.subject, policy), policy, known_attacks(), load_decisions(chosen.decisions))
    print_decision(decision, policy)
    return EXIT_CODES[decision.verdict]


def print_decision(decision: Decision, policy: Policy) -> None:
    """Print the verdict, its reasons, and each rule that was hit or could not be decided.

    Args:
        decision: The verdict.
        policy: The policy that it was reached under.
    """
    print(f"{decision.verdict}  ({policy.name}, version {policy.version})")
    print(decision.summary)
    for reason in decision.reasons:
        print(f"  - {reason}")
    hit = dict.fromkeys(f.rule for f in decision.findings if f.outcome in ("shown", "not_excluded"))
    if hit:
        print(f"rules hit: {', '.join(hit)}")


def _evidence(subject: Path, policy: Policy) -> Evidence:
    from lightning_privacy.report.dossier.build import build_dossier
    from lightning_privacy.report.dossier.canonical import load_dossier

    if subject.is_file():
        return load_dossier(subject)
    if not subject.exists():
        raise InputError(f"There is no {subject}. Name the folder of a run, such as runs/NAME, or a dossier.json.")
    alone = subject / "dossier.json"
    if alone.is_file() and not any((subject / name).is_file() for name in ("config.yaml", "results.jsonl")):
        return load_dossier(alone)
    return build_dossier(RunFolder.open(subject), policy).dossier
