"""Building a dossier from a run's folder; nothing is written."""

import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning_privacy.attacks.membership.registry import MEMBERSHIP_ATTACKS
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.dossier.entries import attack_entry, measurement_entry
from lightning_privacy.report.dossier.limitations import limitations
from lightning_privacy.report.dossier.models import (
    About,
    AttackEntry,
    Claims,
    Decision,
    Moment,
    Protection,
    ReleaseDossier,
    Subject,
)
from lightning_privacy.report.dossier.policy import Policy
from lightning_privacy.report.dossier.records import RecordTable, record_table
from lightning_privacy.report.dossier.scrub import scrub_text
from lightning_privacy.report.dossier.subject import (
    checkpoint_of,
    claims_of,
    data_card,
    file_hash,
    generalisation_gap,
    key_fingerprints,
    protections_of,
    results_hash,
    settings_of,
)
from lightning_privacy.report.dossier.verdict import decide, strongest
from lightning_privacy.report.summary import RunSummary, summarise

__all__ = ["Built", "build_dossier", "known_attacks"]

_INSUFFICIENT = "insufficient_evidence:"
_PACKAGES = ("torch", "lightning", "torchmetrics", "numpy")
_MOST_MOMENTS = 50


@dataclass(frozen=True)
class Built:
    """A dossier and the records that must not be in it.

    Args:
        dossier: What may leave.
        records: The per-record table; None where no attack kept its scores.
    """

    dossier: ReleaseDossier
    records: RecordTable | None


def build_dossier(
    run: RunFolder,
    policy: Policy,
    about: About | None = None,
    claims: Claims | None = None,
) -> Built:
    """Read a run's folder and decide under a policy.

    Args:
        run: The run.
        policy: The rules.
        about: What only the owner can say.
        claims: The claim of differential privacy; found in the run's measurements or settings where None.

    Returns:
        The dossier and its records; two builds of the same folder differ in id and time alone.

    Raises:
        InputError: a file of the run cannot be read, or the policy names an unknown attack.
    """
    summary = summarise(run)
    here = [r for r in summary.results if r.step == summary.steps]
    attacks = _entries(here, summary)
    table, left_out = record_table(here)
    hashes = sorted({r.split_hash for r in here if r.split_hash})
    measurements = [measurement_entry(line, run.path) for line in summary.measurements]
    fingerprints, unread = key_fingerprints(run, bool(summary.defences))
    succeeded = [a.name for a in attacks if not a.failed]
    protections, gaps = protections_of(summary.defences, succeeded, fingerprints, run.path)
    gaps += [g for g in _gaps(here, summary) if g not in gaps]
    dossier = ReleaseDossier(
        attacks=attacks,
        records=None if table is None else table.summary(),
        claims=claims or claims_of(summary.defences, measurements),
        generalisation_gap=generalisation_gap(run, measurements),
        measurements=measurements,
        gaps=[scrub_text(gap, run.path) for gap in gaps],
        dossier_id=str(uuid.uuid4()),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        toolkit={"name": "lightning_privacy", "version": _version("lightning-privacy")},
        environment={
            "python": platform.python_version(),
            "system": platform.system(),
            **{name: _version(name) for name in _PACKAGES},
        },
        subject=Subject(
            name=run.name,
            model=_model_name(summary.settings),
            step=summary.steps,
            epoch=max((r.epoch for r in here), default=0),
            checkpoint=checkpoint_of(run),
            settings=settings_of(summary.settings, run.path),
            about=about or About(),
        ),
        data=data_card(run, hashes),
        protections=protections,
        history=_history(summary, attacks),
        policy=policy,
        decision=Decision(verdict="insufficient_evidence", summary="", reasons=[], findings=[]),
        limitations=_limitations(attacks, protections, hashes, [*unread, *left_out]),
        provenance={
            **{p.name: file_hash(p) for p in (run.config, run.measurements_file) if p.is_file()},
            **({run.results_file.name: results_hash(run)} if run.results_file.is_file() else {}),
        },
    )
    decision = decide(dossier, policy, known_attacks())
    return Built(dossier.model_copy(update={"decision": decision}), table)


def known_attacks() -> list[str]:
    """Return the names of the registered attacks."""
    return sorted(MEMBERSHIP_ATTACKS)


def _entries(results: Sequence[AttackResult], summary: RunSummary) -> list[AttackEntry]:
    entries = [attack_entry(r, False, summary.run.path) for r in results]
    top = strongest(entries)
    if top is None:
        return entries
    place = entries.index(top)
    entries[place] = attack_entry(results[place], True, summary.run.path)
    return entries


def _gaps(results: Sequence[AttackResult], summary: RunSummary) -> list[str]:
    """Return what the results say is missing, and attacks that were asked for or run before and are not there now."""
    notes = [n for r in results for n in r.notes if n.startswith(_INSUFFICIENT)]
    gaps = [n.removeprefix(_INSUFFICIENT).strip() for n in notes]
    gaps = [g[0].upper() + g[1:] for g in dict.fromkeys(gaps) if g]
    there = {(r.family, r.attack) for r in results}
    earlier = {(r.family, r.attack) for r in summary.results} - there
    gaps += [f"The attack `{attack}` was run on an earlier model and not on this one." for _, attack in sorted(earlier)]
    asked = ((summary.settings.get("audits") or {}).get("membership") or {}).get("attacks") or ()
    named = {attack for _, attack in there | earlier}
    gaps += [
        f"The configuration asks for the attack `{a}`, of which there is no result." for a in asked if a not in named
    ]
    return gaps


def _limitations(
    attacks: Sequence[AttackEntry], protections: Sequence[Protection], hashes: Sequence[str], further: Sequence[str]
) -> list[str]:
    said = limitations(attacks, protections, hashes, further)
    return [s.removeprefix(_INSUFFICIENT).strip() for s in said]


def _history(summary: RunSummary, attacks: Sequence[AttackEntry]) -> list[Moment]:
    steps = sorted({*summary.val_loss, *summary.attacked_steps()})
    if len(steps) > _MOST_MOMENTS:
        kept = {steps[round(i * (len(steps) - 1) / (_MOST_MOMENTS - 1))] for i in range(_MOST_MOMENTS)}
        steps = sorted(kept | set(summary.attacked_steps()[-_MOST_MOMENTS:]))
    moments = []
    for step in steps:
        top = summary.strongest(step) if step in summary.attacked_steps() else None
        auroc = attack_entry(top, False, summary.run.path).metrics["auroc"] if top else None
        loss = summary.val_loss_at(step)
        finite = loss is not None and loss == loss and abs(loss) != float("inf")
        moments.append(Moment(step=step, val_loss=loss if finite else None, auroc=auroc))
    return moments


def _model_name(settings: Mapping[str, Any]) -> str:
    model = settings.get("model")
    path = model.get("class_path", "") if isinstance(model, Mapping) else ""
    return str(path).rpartition(".")[2] or "not recorded"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
