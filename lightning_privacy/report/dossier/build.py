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
from lightning_privacy.report.dossier.claims import claims_of
from lightning_privacy.report.dossier.decisions import PeopleDecisions
from lightning_privacy.report.dossier.entries import attack_entry, measurement_entry
from lightning_privacy.report.dossier.file_hash import file_hash
from lightning_privacy.report.dossier.gaps import INSUFFICIENT, missing_evidence
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
from lightning_privacy.report.dossier.split_record import data_card, split_gaps
from lightning_privacy.report.dossier.subject import (
    generalisation_gap,
    parents_of,
    protections_of,
    results_hash,
    settings_of,
)
from lightning_privacy.report.dossier.verdict import decide, strongest
from lightning_privacy.report.dossier.weights import weights_of
from lightning_privacy.report.summary import RunSummary, summarise

__all__ = ["Built", "build_dossier", "known_attacks"]

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
    people: PeopleDecisions | None = None,
) -> Built:
    """Read a run's folder and decide under a policy.

    Args:
        run: The run.
        policy: The rules.
        about: What only the owner can say.
        claims: The claim of differential privacy; found in the run's measurements or settings where None.
        people: Waivers and sign-offs.

    Returns:
        The dossier and its records; two builds of the same folder differ in id and time alone.

    Raises:
        InputError: a file of the run cannot be read, or the policy names an unknown attack, or a waiver a rule that
            cannot be waived.
    """
    summary = summarise(run)
    here = [r for r in summary.results if r.step == summary.steps]
    attacks = _entries(here, summary)
    table, left_out = record_table(here)
    hashes = sorted({r.split_hash for r in here if r.split_hash})
    measurements = [measurement_entry(line, run.path) for line in summary.measurements]
    weights = weights_of(run, summary.steps if here else None, bool(summary.defences))
    data = data_card(run, hashes, {role for r in here for role in r.n})
    # An inversion attack's result is named after its tap and its victims too.
    succeeded = [name for a in attacks if not a.failed for name in (a.name, a.name.rpartition("/")[2])]
    protections, gaps = protections_of(summary.defences, succeeded, weights.fingerprints, run.path)
    gaps += [*missing_evidence(here, summary), *weights.gaps, *split_gaps(run, hashes)]
    dossier = ReleaseDossier(
        attacks=attacks,
        records=None if table is None else table.summary(),
        claims=claims or claims_of(summary.defences, measurements),
        generalisation_gap=generalisation_gap(run, measurements),
        measurements=measurements,
        gaps=[scrub_text(gap, run.path) for gap in dict.fromkeys(gaps)],
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
            checkpoint=weights.checkpoint,
            settings=settings_of(summary.settings, run.path),
            about=about or About(),
        ),
        data=data,
        protections=protections,
        history=_history(summary, attacks),
        policy=policy,
        decision=Decision(verdict="insufficient_evidence", summary="", reasons=[], findings=[]),
        limitations=_limitations(attacks, protections, hashes, [*weights.remarks, *left_out]),
        provenance={
            **{p.name: file_hash(p) for p in (run.config, run.measurements_file) if p.is_file()},
            **({run.results_file.name: results_hash(run)} if run.results_file.is_file() else {}),
        },
        parents=parents_of(summary.settings),
    )
    decision = decide(dossier, policy, known_attacks(), people)
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


def _limitations(
    attacks: Sequence[AttackEntry], protections: Sequence[Protection], hashes: Sequence[str], further: Sequence[str]
) -> list[str]:
    said = limitations(attacks, protections, hashes, further)
    return [s.removeprefix(INSUFFICIENT).strip() for s in said]


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
