"""One self-contained page: tables, figures, pictures, settings. Nothing is loaded from anywhere."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.metric_names import family_title, metric_label, table_columns
from lightning_privacy.report.figures import loss_figure, privacy_utility_figure, roc_figure, to_svg
from lightning_privacy.report.summary import RunSummary, best_undefended
from lightning_privacy.report.tables import COLUMNS, MEANING, caveats, compare_rows, number

__all__ = ["render", "write_report"]

_PICTURES_A_RUN = 4
_FURTHER = 5  # chosen here: columns of a family none of whose metrics is known to matter most


def write_report(path: Path, runs: Sequence[RunSummary], title: str) -> Path:
    """Write the page.

    Args:
        path: The file, replaced if it exists.
        runs: What it is about.
        title: Its heading.

    Raises:
        InputError: jinja2 or matplotlib is missing.
    """
    write_atomically(path, render(runs, title))
    return path


def render(runs: Sequence[RunSummary], title: str) -> str:
    """Return the page as text; see `write_report`."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as missing:
        raise InputError("Reports need jinja2: pip install 'lightning-privacy[report]'.") from missing
    source = files("lightning_privacy.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)
    reference = best_undefended(runs)
    return template.render(
        title=title,
        columns=COLUMNS,
        rows=compare_rows(runs),
        reference=reference.name if reference else "",
        meaning=MEANING,
        caveats=caveats(runs),
        figures=_figures(runs),
        runs=[_section(run) for run in runs],
    )


def _figures(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    made = {
        "Privacy against utility. Dashed: the undefended run stopped earlier; to be of use, a defence must lie below "
        "and left of it": privacy_utility_figure(runs),
        "ROC of the strongest attack, logarithmic: what matters is the left side": roc_figure(runs),
        "Held-out loss during training": loss_figure(runs),
    }
    return [{"caption": caption, "svg": to_svg(figure)} for caption, figure in made.items() if figure is not None]


def _section(run: RunSummary) -> dict[str, Any]:
    here = [r for r in run.results if r.step == run.steps]
    return {
        "name": run.name,
        "path": str(run.run.path),
        "defences": "; ".join(f"{name} ({_plain(args)})" for name, args in run.defences.items()) or "none",
        "steps": run.steps,
        "tables": [_table(family, here) for family in sorted({r.family for r in here}, key=_membership_first)],
        "measurements": [
            {
                "name": f"{m['kind']}/{m['name']}",
                "value": _shown(m["value"]),
                "n": ", ".join(f"{v} {k}" for k, v in m["n"].items()) if isinstance(m["n"], dict) else m["n"] or "",
                "step": m["step"],
                "reason": m["reason"],
            }
            for m in run.measurements
        ],
        "pictures": [{"name": p.stem, "data": _embed(p)} for p in _pictures(run)],
        "settings": yaml.safe_dump(run.settings, sort_keys=False) if run.settings else "",
    }


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _membership_first(family: str) -> tuple[bool, str]:
    return family != "membership", family


def _table(family: str, results: Sequence[AttackResult]) -> dict[str, Any]:
    """Return the table of one family of attacks: its metrics by a reader's interest, one row an attack."""
    here = [r for r in results if r.family == family]
    first, further = table_columns(name for r in here for name in r.metrics)
    names = first or further[:_FURTHER]
    return {
        "title": family_title(family),
        "labels": [metric_label(name) for name in names],
        "rows": [
            {
                "name": r.attack,
                "strongest": r.strongest,
                "access": r.access,
                "numbers": [number(r.metrics.get(name)) for name in names],
                "n": ", ".join(f"{count} {role}" for role, count in r.n.items()),
                "reasons": [f"{name}: {m.reason}" for name, m in r.metrics.items() if not m.valid and m.reason],
            }
            for r in here
        ],
    }


def _plain(args: dict[str, Any]) -> str:
    args = args.get("init_args", args)
    return ", ".join(f"{k} {v}" for k, v in args.items() if v is not None)


def _pictures(run: RunSummary) -> list[Path]:
    every = sorted(run.run.pictures.rglob("*.png"), key=lambda p: (p.stat().st_mtime, p.name))
    return every[-_PICTURES_A_RUN:]


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
