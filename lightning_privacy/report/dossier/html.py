"""The dossier as one self-contained page. Nothing is loaded from anywhere."""

import re
from importlib.resources import files
from typing import Any

import yaml

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.canonical import content_hash, dossier_json
from lightning_privacy.report.dossier.figures import history_figure, roc_band_figure, score_figure, svg_of
from lightning_privacy.report.dossier.lock_names import lock_attack_label
from lightning_privacy.report.dossier.lock_section import lock_section
from lightning_privacy.report.dossier.metric_names import family_title, metric_label, table_columns
from lightning_privacy.report.dossier.models import AttackEntry, Number, ReleaseDossier
from lightning_privacy.report.dossier.verdict import strongest
from lightning_privacy.report.dossier.wording import VERDICTS, interval_text, number_text, rule_text, value_text

__all__ = ["render_html", "render_template"]

_OUTCOMES = {
    "passed": "within the limit",
    "shown": "shown to be beyond",
    "not_excluded": "not shown to be within",
    "no_evidence": "no valid evidence",
    "not_applicable": "does not apply",
}


def render_html(dossier: ReleaseDossier) -> str:
    """Return the page as text, made from the dossier alone.

    Args:
        dossier: The dossier.

    Raises:
        InputError: jinja2 or matplotlib is missing.
    """
    top = strongest(dossier.attacks)
    lock = lock_section(dossier)
    return render_template(
        "dossier.html.j2",
        autoescape=True,
        d=dossier,
        verdict=VERDICTS[dossier.decision.verdict],
        outcomes=_OUTCOMES,
        rules=[{"rule": r, "text": rule_text(r)} for r in dossier.policy.rules],
        figures=_figures(dossier, top),
        history=svg_of(history) if (history := history_figure(dossier.history)) is not None else "",
        top=top,
        tables=_tables(dossier),
        lock=lock,
        lock_figure=svg_of(lock.figure) if lock is not None and lock.figure is not None else "",
        in_words=_in_words,
        leak=table_columns(top.metrics)[0] if top is not None else [],
        label=metric_label,
        number=number_text,
        value=value_text,
        interval=interval_text,
        marks=_marks(dossier),
        utility=[m for m in dossier.measurements if m.kind in ("utility", "quality")],
        other=[m for m in dossier.measurements if m.kind not in ("utility", "quality")],
        settings=yaml.safe_dump(dict(dossier.subject.settings), sort_keys=False, allow_unicode=True),
        digest=content_hash(dossier),
        json_text=dossier_json(dossier),
    )


def render_template(name: str, autoescape: bool, **values: Any) -> str:
    """Return a template of this folder, filled in.

    Args:
        name: Its file.
        autoescape: Whether values are escaped for HTML.
        **values: What it is filled in with.

    Raises:
        InputError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as missing:
        raise InputError("Dossiers need jinja2: pip install 'lightning-privacy[report]'.") from missing
    source = files("lightning_privacy.report.dossier").joinpath(name).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    environment.filters["ticks"] = _ticks
    return environment.from_string(source).render(**values)


def _ticks(text: object) -> object:
    """Return a sentence, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _markdown(text: object) -> str:
    """Return a text in which Markdown and HTML mean nothing, on one line."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return plain


def _figures(dossier: ReleaseDossier, top: AttackEntry | None) -> list[dict[str, str]]:
    scores = dossier.records.attacks.get(top.name) if dossier.records and top else None
    made = {
        "ROC, logarithmic: what matters is the left side. The axis begins where one non-member is accused; the band is that "
        "of the strongest attack": roc_band_figure(dossier.attacks, top),
        "Scores that the strongest attack gives: where the two overlap, nobody can be told apart; what lies outside is "
        "counted at the ends": score_figure(top, scores.threshold if scores else None),
    }
    return [{"caption": caption, "svg": svg_of(figure)} for caption, figure in made.items() if figure is not None]


def _tables(dossier: ReleaseDossier) -> list[dict[str, Any]]:
    """Return one table a family of attacks, membership first: its title, its attacks, and their metrics by interest."""
    families = sorted({a.family for a in dossier.attacks}, key=lambda family: (family != "membership", family))
    tables = []
    for family in families:
        attacks = [a for a in dossier.attacks if a.family == family]
        columns = table_columns(name for a in attacks for name in a.metrics)
        tables.append({"title": family_title(family), "attacks": attacks, "columns": columns})
    return tables


def _in_words(attack: AttackEntry) -> str:
    """Return what an attack does where its name alone does not say it, else nothing."""
    if not attack.family.startswith("lock"):
        return ""
    chosen = attack.settings.get("chosen_attack")
    told = [lock_attack_label(attack.name), *([lock_attack_label(str(chosen))] if chosen else [])]
    return "" if told == [attack.name] else ": ".join(told)


def _marks(dossier: ReleaseDossier) -> list[str]:
    """Return why numbers are not valid, each reason once with those it is about."""
    about: dict[str, list[str]] = {}
    for attack in dossier.attacks:
        for name, metric in attack.metrics.items():
            if not metric.valid:
                about.setdefault(metric.reason or "not valid", []).append(f"{attack.name}, {metric_label(name)}")
    numbers: list[tuple[str, Number]] = [(f"{m.kind}/{m.name}", m.number) for m in dossier.measurements]
    for name, number in numbers:
        if not number.valid:
            about.setdefault(number.reason or "not valid", []).append(name)
    return [f"{reason} ({'; '.join(whose)})" for reason, whose in about.items()]
