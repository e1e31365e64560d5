"""Contract checks on audits: they measure, write what they measured, and leave the run as it was."""

import inspect
from pathlib import Path
from typing import Any

from lightning_privacy.core.defence import Defence
from lightning_privacy.core.registry import AUDITS as REGISTERED
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.testing.expect import expect
from lightning_privacy.testing.fitting import Fitted, compare, fit
from lightning_privacy.testing.ranks import RankPool
from lightning_privacy.testing.settings import AUDITS, AuditCase

__all__ = ["AUDIT_CHECKS", "audit_case_of", "check_audit_on_ranks", "fit_audited"]

BATCH = 8


def audit_case_of(name: str) -> AuditCase:
    """Return the case of a registered audit.

    Args:
        name: Its registered name.
    """
    expect(name in AUDITS, f"The audit `{name}` has no entry in `lightning_privacy.testing.settings.AUDITS`.")
    return AUDITS[name]


def _build(case: AuditCase) -> Any:
    return REGISTERED.load(case.name)(**case.kwargs)


def _fit(case: AuditCase, folder: Path | str, *callbacks: Any, **options: Any) -> Fitted:
    size = options.pop("batch_size", BATCH)
    return fit(folder, case.module(), case.data(size), callbacks, max_epochs=2, **options)


def check_audit_leaves_run_alone(case: AuditCase, folder: Path | str) -> None:
    """Weights, statistics, optimizers, modes and random states are those of the run without the audit."""
    alone = _fit(case, Path(folder, "alone"))
    watched = _fit(case, Path(folder, "audited"), _build(case))
    for what, one, other in (
        ("weights or statistics", watched.weights, alone.weights),
        ("optimizers", *([o.state_dict() for o in f.trainer.optimizers] for f in (watched, alone))),
        ("modes", *({n: m.training for n, m in f.module.named_modules()} for f in (watched, alone))),
        ("random states", watched.random_state, alone.random_state),
        ("attributes of the module", *(sorted(f.module.__dict__) for f in (watched, alone))),
        (
            "gradients asked for",
            *({n: p.requires_grad for n, p in f.module.named_parameters()} for f in (watched, alone)),
        ),
    ):
        differ = compare(one, other)
        expect(not differ, f"The audit `{case.name}` changed {what} of the run: {differ[:3]}.")


def check_audit_writes(case: AuditCase, folder: Path | str) -> None:
    """It writes its results into the run folder, and they can be read."""
    _fit(case, folder, _build(case))
    run = RunFolder(folder)
    for name in case.writes:
        expect((run.path / name).is_file(), f"The audit `{case.name}` wrote no {name}.")
    lines = [*run.results(), *run.measurements()]
    expect(bool(lines), f"The audit `{case.name}` wrote nothing.")


def check_audit_keeps_arguments(case: AuditCase, folder: Path | str) -> None:
    """It is a plain callback, no defence; every constructor argument is kept under its own name and documented."""
    audit = _build(case)
    expect(not isinstance(audit, Defence), f"The audit `{case.name}` is a defence.")
    names = list(inspect.signature(type(audit)).parameters)
    lost = [n for n in names if not hasattr(audit, n)]
    expect(not lost, f"The audit `{case.name}` does not keep {lost} under their own names.")
    text = inspect.getdoc(type(audit)) or ""
    untold = [n for n in names if f"{n}:" not in text]
    expect(not untold, f"The docstring of {type(audit).__name__}, its help text, does not explain {untold}.")


def check_audit_on_ranks(case: AuditCase, folder: Path | str, pool: RankPool) -> None:
    """On two ranks it leaves the run alone, and every line is written once.

    Args:
        case: The audit.
        folder: An empty folder.
        pool: Two ranks.
    """
    alone = pool.run(fit_audited, case, str(Path(folder, "alone")), False)
    watched = pool.run(fit_audited, case, str(Path(folder, "audited")), True)
    differ = compare(watched, alone)
    expect(not differ, f"The audit `{case.name}` changed the run on two ranks: {differ[:3]}.")
    for name in case.writes:
        path = Path(folder, "audited", name)
        expect(path.is_file(), f"The audit `{case.name}` wrote no {name} on two ranks.")
        lines = path.read_text(encoding="utf-8").splitlines()
        expect(len(lines) == len(set(lines)), f"The audit `{case.name}` wrote lines twice on two ranks.")


def fit_audited(case: AuditCase, folder: str, audited: bool) -> dict[str, Any]:
    """Train on one of two ranks, with or without the audit.

    Args:
        case: The audit.
        folder: Root folder.
        audited: Whether the audit runs.
    """
    callbacks = [_build(case)] if audited else []
    return _fit(case, folder, *callbacks, batch_size=BATCH // 2, strategy="ddp", devices=2).weights


AUDIT_CHECKS = {
    check.__name__.removeprefix("check_audit_"): check
    for check in (check_audit_leaves_run_alone, check_audit_writes, check_audit_keeps_arguments)
}
"""All checks of one process, by name."""
