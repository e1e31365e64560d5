"""Which attacks an audit of shared updates runs, and which of them have anything to say where."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from torch import nn

from lightning_privacy.attacks.leakage.analytic import FirstLayerRecovery
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.registry import ATTACKS
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update_defence import InformedDefence
from lightning_privacy.callbacks.audits.leakage_conditions import Condition
from lightning_privacy.callbacks.audits.leakage_network import PREFIX
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.import_path import import_object
from lightning_privacy.errors import InputError

__all__ = [
    "DEFAULT_ATTACKS",
    "LABELS",
    "NEED_LOCK",
    "Informed",
    "applies",
    "build_leakage_attacks",
    "informed_attacks_of",
]

LABELS = "label_inference"
"""Reads the classes off the head's gradient; it reconstructs no picture."""
DEFAULT_ATTACKS = (
    LABELS,
    "first_layer",
    "dlg",
    "inverting_gradients",
    "wrong_key",
    "joint",
    "joint_pooled",
    "known_lock",
)
_SEARCHES = ("dlg", "inverting_gradients", "grnn", "latent")
NEED_LOCK = frozenset({"key_regression", "known_lock"})
_NEED_SECRETS = NEED_LOCK | {"wrong_key", "joint", "joint_pooled"}
# chosen here: LeNet, 32-pixel faces, one CPU core: 3 to 5 seconds each; total variation on faces that were no victims, aligned
# SSIM of one undefended record .96 for 1e-2, .89 for 1e-1, .87 for none
_BUDGET: Mapping[str, Mapping[str, float]] = {
    "dlg": {"evaluations": 300, "restarts": 2, "total_variation": 1e-2},
    "inverting_gradients": {"steps": 400, "restarts": 1},
    "grnn": {"steps": 300, "restarts": 1},
    "latent": {"evaluations": 150, "restarts": 2},
}


def build_leakage_attacks(
    names: Sequence[str], arguments: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, LeakageAttack]:
    """Return new attacks by name, within an audit's budget; `LABELS` needs none and is left out.

    Args:
        names: Their names.
        arguments: Of each constructor, by name. An attack that extends a search is given the search by name
            (``joint: {attack: inverting_gradients}``) and takes the arguments that stand there for that search; layers
            are named as in the module.

    Raises:
        InputError: an attack or an argument is unknown, or an attack is named twice.

    Example:
        >>> build_leakage_attacks(["joint"], {"dlg": {"evaluations": 50}})["joint"].attack.evaluations
        50
    """
    given = arguments or {}
    known = (LABELS, *ATTACKS)
    if unknown := [name for name in (*names, *given) if name not in known]:
        raise InputError(f"There is no leakage attack `{unknown[0]}`; there are {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise InputError(f"A leakage audit names each attack once, but was given {', '.join(names)}.")
    for name in given:
        _build(name, given)  # what nobody runs is checked too
    return {name: _build(name, given) for name in names if name != LABELS}


def _build(name: str, given: Mapping[str, Mapping[str, Any]]) -> Any:
    if name == LABELS:
        if given.get(name):
            raise InputError(f"The leakage attack `{LABELS}` has no arguments.")
        return None
    made = ATTACKS[name]
    parameters = inspect.signature(made).parameters
    own: dict[str, Any] = {**_BUDGET.get(name, {}), **given.get(name, {})}
    if unknown := sorted(set(own) - set(parameters)):
        raise InputError(
            f"The leakage attack `{name}` has no argument `{unknown[0]}`; it has {', '.join(parameters) or 'none'}."
        )
    if "attack" in parameters:
        search = own.get("attack", "dlg")
        if search not in _SEARCHES:
            raise InputError(f"The leakage attack `{name}` extends one of {', '.join(_SEARCHES)}, and not {search!r}.")
        own["attack"] = _build(search, given)
    if own.get("layers") is not None:
        own["layers"] = tuple(PREFIX + layer for layer in own["layers"])
    if "layer" in own:
        own["layer"] = PREFIX + own["layer"]
    return made(**own)


@dataclass(frozen=True)
class Informed:
    """The attacks on updates that know a run's defences.

    Args:
        registered: Names of those that an audit can build itself.
        own: The defences' own, by name.
        notes: What must be said where there are none.
    """

    registered: tuple[str, ...]
    own: Mapping[str, LeakageAttack]
    notes: tuple[str, ...]


def informed_attacks_of(defences: Sequence[Defence], search: Any, units: int = 1) -> Informed:
    """Return the attacks on updates that know these defences.

    Args:
        defences: The defences of the run.
        search: What attacks that extend a search take in place of the default budget.
        units: Records behind an update, for defences that clip each of them.
    """
    registered: list[str] = []
    own: dict[str, LeakageAttack] = {}
    notes: list[str] = []
    for defence in defences:
        built = [import_object(path)() for path in defence.adaptive_attacks]
        known = tuple(each for each in built if isinstance(each, LeakageAttack))
        if isinstance(defence, InformedDefence):
            counted = "units" in inspect.signature(defence.informed_attacks).parameters
            by_record = getattr(defence, "resolved_unit", None) == "record"
            told: dict[str, Any] = {"units": units if by_record else 1} if counted else {}
            # Its own with its settings; of those that it names, the ones that need none.
            known = *defence.informed_attacks(**told), *(each for each in known if _is_registered(each))
        if not known:
            notes.append(f"insufficient_evidence: no attack on shared updates knows the defence `{defence.name}`.")
        for attack in known:
            if _is_registered(attack):
                registered.append(attack.name)
                continue
            number = sum(name.split("+")[0] == attack.name for name in own)
            own[attack.name + (f"+{number}" if number else "")] = _within_budget(attack, search)
    # The one that knows the lock regresses the key too.
    kept = [n for n in dict.fromkeys(registered) if n != "key_regression" or "known_lock" not in registered]
    return Informed(tuple(kept), own, tuple(notes))


def _is_registered(attack: LeakageAttack) -> bool:
    return ATTACKS.get(attack.name) is type(attack)


def _within_budget(attack: LeakageAttack, search: Any) -> LeakageAttack:
    if is_dataclass(attack) and not isinstance(attack, type) and getattr(attack, "attack", None) == DeepLeakage():
        return replace(attack, attack=search)
    return attack


def applies(name: str, attack: LeakageAttack, condition: Condition) -> bool:
    """Return whether an attack has anything to say under a condition.

    Args:
        name: Its name.
        attack: The attack.
        condition: Whose view, of what update.
    """
    target = condition.target
    if condition.knows_lock or name in NEED_LOCK:
        return condition.knows_lock and name in NEED_LOCK
    if isinstance(attack, FirstLayerRecovery):
        return _sees_pixels(target)
    return name in _NEED_SECRETS or attack.estimates_secrets if target.secrets else name not in _NEED_SECRETS


def _sees_pixels(target: LeakageTarget) -> bool:
    pixels = math.prod(target.image_shape)
    return any(isinstance(m, nn.Linear) and m.in_features == pixels for m in target.skeleton.modules())
