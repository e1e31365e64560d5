"""What the numbers of a dossier do not show, in sentences."""

from collections.abc import Sequence

from lightning_privacy.metrics.membership import null_auroc_sd
from lightning_privacy.report.dossier.metric_names import metric_label
from lightning_privacy.report.dossier.models import AttackEntry, Protection
from lightning_privacy.report.dossier.observe import sides

__all__ = ["limitations"]

_FEW = 1000  # chosen here: below, the 95 % interval of an AUROC of noise is wider than +- 0.025
_SHADOW_ATTACKS = ("lira", "rmia", "base_attack", "shadow")


def limitations(
    attacks: Sequence[AttackEntry],
    protections: Sequence[Protection],
    split_hashes: Sequence[str],
    further: Sequence[str] = (),
) -> list[str]:
    """Return what a reader must know before believing the numbers, each once.

    Args:
        attacks: The attacks on the model.
        protections: Its defences.
        split_hashes: Splits that the results are on.
        further: What building the dossier came upon.
    """
    said = [*further]
    said += _on_seeds(split_hashes)
    said += _on_records(attacks)
    said += _on_attackers(attacks, protections)
    said += [note for attack in attacks for note in attack.notes]
    return list(dict.fromkeys(said))


def has_shadow_attack(attacks: Sequence[AttackEntry]) -> bool:
    """Return whether an attack used models trained for comparison."""
    return any(
        "shadow" in a.access.lower()
        or any(name in a.name for name in _SHADOW_ATTACKS)
        or any("shadow" in key for key in a.settings)
        for a in attacks
        if not a.failed
    )


def _on_seeds(split_hashes: Sequence[str]) -> list[str]:
    said = [
        "One model on one split: the intervals cover which records happened to be evaluated, not another split or "
        "another training seed; a claim about the method needs at least 5 split seeds."
    ]
    if len(set(split_hashes)) > 1:
        said.append("The results are on different splits: their numbers are not about the same records.")
    return said


def _on_records(attacks: Sequence[AttackEntry]) -> list[str]:
    said = []
    counts = sorted({n for n in map(sides, attacks) if n is not None})
    for member, nonmember in counts:
        if min(member, nonmember) < _FEW:
            sd = null_auroc_sd(member, nonmember)
            said.append(
                f"Few records: {member} members against {nonmember} non-members, where the AUROC of pure noise has a "
                f"standard deviation of {sd:.3f} around 0.5."
            )
    rates = sorted({n for a in attacks for n, m in a.metrics.items() if n.startswith("tpr_at_fpr_") and not m.valid})
    supported = {n for a in attacks for n, m in a.metrics.items() if n.startswith("tpr_at_fpr_") and m.valid}
    if unsupported := [n for n in rates if n not in supported]:
        said.append(
            f"Too few non-members for {', '.join(map(metric_label, unsupported))}: nothing is known of the leak at false-"
            "positive rates that low, where attacks do most harm."
        )
    for attack in attacks:
        auroc = attack.metrics.get("auroc")
        if auroc is not None and auroc.valid and auroc.high is not None and auroc.high < 0.5:
            said.append(
                f"`{attack.name}` ranks non-members above members (AUROC below 0.5): the sign found on its fit data did "
                "not carry over, and an attacker who knew better would turn it round."
            )
    return said


def _on_attackers(attacks: Sequence[AttackEntry], protections: Sequence[Protection]) -> list[str]:
    said = []
    if not attacks:
        said.append("No attack was run on this model.")
    if stuck := [a.name for a in attacks if not a.converged]:
        said.append(f"The attacker did not converge ({', '.join(stuck)}), so that the leak may be larger.")
    said += [f"The attack `{a.name}` failed: {a.failed}." for a in attacks if a.failed]
    if any(a.family == "membership" for a in attacks) and not has_shadow_attack(attacks):
        said.append(
            "No attack with shadow models was run (LiRA, arXiv 2112.03570; RMIA, arXiv 2312.03262): these are the "
            "strongest known at low false-positive rates."
        )
    untried = [p.name for p in protections if not p.attacked]
    if untried:
        said.append(f"No attack that knows the defence was run: {', '.join(untried)}. The leak may be larger.")
    if len([a for a in attacks if not a.failed]) > 1:
        said.append(
            f"{len(attacks)} attacks were tried; the ends of their intervals are not adjusted for that, so that the "
            "largest number is biased upwards and a limit on all of them errs towards not releasing."
        )
    return said
