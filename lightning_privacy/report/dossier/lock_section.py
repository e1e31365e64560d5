"""What a dossier says of a lock: UP, LP, their gap, chance, the strongest attack, and what labelled pictures are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_privacy.report.dossier.figures import new_figure
from lightning_privacy.report.dossier.lock_names import BY_COUNT, lock_attack_label, split_count
from lightning_privacy.report.dossier.models import AttackEntry, Number, ReleaseDossier
from lightning_privacy.report.dossier.newcombe import newcombe_difference

__all__ = ["LockSection", "label_figure", "lock_section"]

_FAMILIES = ("lock", "lock_reference")
_COLOURS = {
    "fine_tune": "#D55E00",
    "head_tune": "#CC79A7",
    "weight_layout": "#E69F00",
    "scratch": "#0072B2",
}  # Okabe and Ito


@dataclass(frozen=True)
class LockSection:
    """What the page shows.

    Args:
        rows: What, in words; its accuracy; what it means.
        scored: Pictures that were scored, and their role.
        fingerprint: Of the key; None where the run has none.
        mode: Mode of the lock; None for a model without one.
        notes: What the audit says of the lock.
        figure: Accuracy against the number of labelled pictures; None where nothing was run for several.
    """

    rows: list[tuple[str, Number, str]]
    scored: str
    fingerprint: str | None
    mode: str | None
    notes: list[str]
    figure: Any | None


def lock_section(dossier: ReleaseDossier) -> LockSection | None:
    """Return the section of a dossier; None where no lock was audited.

    Args:
        dossier: The dossier.
    """
    by = {a.name: a for a in dossier.attacks if a.family in _FAMILIES and "accuracy" in a.metrics}
    up, lp = by.get("with_key"), by.get("no_key")
    if up is None:
        return None
    rows = [("UP", up.metrics["accuracy"], "right answers on pictures edited with the key")]
    if lp is not None:
        rows.append(
            ("LP", lp.metrics["accuracy"], "right answers on raw pictures, as whoever lacks the key shows them")
        )
        rows.append(("gap", _gap(up, lp), "UP minus LP; the interval takes both for judged on different pictures"))
    if "chance" in by:
        rows.append(("chance", by["chance"].metrics["accuracy"], "right answers of whoever guesses"))
    if (best := by.get("strongest")) is not None:
        attack = str(best.settings.get("chosen_attack", ""))
        told = f"{lock_attack_label(attack)} (`{attack}`); has {best.access}; chosen on the attacker's own pictures"
        rows.append(("strongest attack", best.metrics["accuracy"], told))
    lock = next((p for p in dossier.protections if p.name == "model_lock"), None)
    return LockSection(
        rows,
        ", ".join(f"{count} {role}" for role, count in up.n.items()),
        None if lock is None else lock.key_fingerprint,
        None if lock is None else str(lock.settings.get("mode", "")),
        [] if best is None else best.notes,
        label_figure(by, up),
    )


def label_figure(attacks: Mapping[str, AttackEntry], up: AttackEntry) -> Any | None:
    """Return accuracy against the number of labelled pictures that the attacker has, or None where none were run.

    Args:
        attacks: By name.
        up: The model with the key, a line across.
    """
    curves: dict[str, list[tuple[int, Number]]] = {}
    for name, attack in attacks.items():
        counted = split_count(name)
        if counted is not None and attack.metrics["accuracy"].value is not None:
            curves.setdefault(counted[0], []).append((counted[1], attack.metrics["accuracy"]))
    if not curves:
        return None
    figure, axes = new_figure()
    every = sorted({k for points in curves.values() for k, _ in points})
    for name, points in curves.items():
        _curve(axes, BY_COUNT.get(name, name), _COLOURS.get(name, "0.4"), sorted(points, key=lambda p: p[0]))
    if up.metrics["accuracy"].value is not None:
        axes.axhline(up.metrics["accuracy"].value, color="0.2", linewidth=1, label="UP, with the key")
    for name, style in (("no_key", "--"), ("chance", ":")):
        value = attacks[name].metrics["accuracy"].value if name in attacks else None
        if value is not None:
            axes.axhline(value, color="0.5", linewidth=1, linestyle=style, label="LP" if name == "no_key" else "chance")
    axes.set(xscale="log", xlabel="labelled raw pictures that the attacker has", ylabel="right answers, share")
    axes.set_xticks(every, [str(k) for k in every])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.02)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _curve(axes: Any, label: str, colour: str, points: Sequence[tuple[int, Number]]) -> None:
    xs, values = [k for k, _ in points], [n.value or 0.0 for _, n in points]
    low = [v if n.low is None else n.low for (_, n), v in zip(points, values, strict=True)]
    high = [v if n.high is None else n.high for (_, n), v in zip(points, values, strict=True)]
    axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(xs, values, color=colour, marker="o", markersize=3.5, label=label)


def _gap(up: AttackEntry, lp: AttackEntry) -> Number:
    values = up.metrics["accuracy"].value, lp.metrics["accuracy"].value
    n = sum(up.n.values()), sum(lp.n.values())
    if values[0] is None or values[1] is None or min(n) < 1:
        return Number(value=None, valid=False, reason="UP or LP was not measured")
    low, high = newcombe_difference((round(values[0] * n[0]), round(values[1] * n[1])), n)
    valid = up.metrics["accuracy"].valid and lp.metrics["accuracy"].valid
    reason = up.metrics["accuracy"].reason or lp.metrics["accuracy"].reason
    return Number(
        value=values[0] - values[1], low=low, high=high, method="Newcombe 1998, method 10", valid=valid, reason=reason
    )
