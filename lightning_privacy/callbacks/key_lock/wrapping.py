"""Which normalisation layers become private, and their replacement."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from lightning_privacy.callbacks.key_lock.functional import ACTIVATIONS, DISTRIBUTIONS, Activation, Distribution
from lightning_privacy.callbacks.key_lock.layers import NORMS, KeyLockedNorm, PrivateAffineNorm, SecretNorm
from lightning_privacy.callbacks.key_lock.start import locks_of, private_norms
from lightning_privacy.core.defence import SurgeryReport
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["Layers", "check_layers", "check_lock", "lock_norms", "norm_names", "wrap_norms"]

Layers = str | list[str]
"""``first``, ``all``, or patterns of names: globs, or regular expressions after ``re:``."""


def check_layers(owner: str, layers: Layers) -> None:
    """Refuse an empty choice of layers.

    Args:
        owner: Who was given it, for the error.
        layers: The choice.

    Raises:
        InputError: there is nothing in it.
    """
    if not layers or (not isinstance(layers, str) and "" in layers):
        raise InputError(f"{owner}: `layers` names nothing; give `first`, `all`, or patterns of layers' names.")


def check_lock(owner: str, key_length: int, activation: str, distribution: str, spread: float | int) -> None:
    """Refuse settings of a lock that are out of range.

    Args:
        owner: Who was given them, for the error.
        key_length: At least 1.
        activation: One of `functional.ACTIVATIONS`.
        distribution: One of `functional.DISTRIBUTIONS`.
        spread: Finite, at least 0.

    Raises:
        InputError: one of them is.
    """
    for what, value, known in (
        ("activation", activation, ACTIVATIONS),
        ("key_distribution", distribution, DISTRIBUTIONS),
    ):
        if value not in known:
            raise InputError(f"{owner}: `{what}` is {value!r}; it must be one of {', '.join(known)}.")
    if key_length < 1 or not 0 <= spread < float("inf"):
        raise InputError(
            f"{owner}: `key_length` is {key_length} and `spread` is {spread}; they must be at least 1, and at least 0 and "
            "finite."
        )


def norm_names(module: nn.Module) -> list[list[str]]:
    """Return the names of all normalisation layers, those that are private already included, in the module's order.

    Args:
        module: Any module.

    Returns:
        For each layer, its names: more than one where it stands at several places.

    Example:
        >>> norm_names(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), KeyLockedNorm(nn.LayerNorm(2), 4)))
        [['1'], ['2']]
    """
    found: dict[int, list[str]] = {}
    inside: list[str] = []
    for name, part in module.named_modules(remove_duplicate=False):
        if not name or any(name.startswith(prefix) for prefix in inside):
            continue
        places = found.setdefault(id(part), []) if isinstance(part, (SecretNorm, *NORMS)) else []
        if isinstance(part, SecretNorm):
            inside.append(f"{name}.")
            places += [p for p in part.origin or [name] if p not in places]
        elif isinstance(part, NORMS):
            places.append(name)
    return list(found.values())


def wrap_norms(
    owner: str,
    module: nn.Module,
    layers: Layers,
    replacement: type[KeyLockedNorm] | type[PrivateAffineNorm],
    factory: Callable[[nn.Module], nn.Module],
) -> SurgeryReport:
    """Wrap the chosen layers; a second call finds the wrappers and changes nothing.

    Args:
        owner: Who asks, for errors.
        module: Changed in place.
        layers: The choice.
        replacement: Class of the wrappers.
        factory: Makes one from a layer.

    Raises:
        NoEffectError: the module has no such layer.
        InputError: it has private layers of the other kind, or other ones of this kind than are asked for.
    """
    before = private_norms(module)
    if other := [name for name, part in before.items() if not isinstance(part, replacement)]:
        raise InputError(
            f"`{owner}` finds a private scale and shift of another kind in this {type(module).__name__} ({', '.join(other)}). "
            "Take a new module, or the defence that made them."
        )
    names: Sequence[str] = [layers] if isinstance(layers, str) else layers
    if layers in ("first", "all"):
        norms = norm_names(module)
        if not norms:
            raise NoEffectError(
                f"`{owner}` is to hide scales and shifts of normalisation layers, of which this {type(module).__name__} has "
                "none (batch, instance, group or layer normalisation). Put one behind its first layer, or build the layers "
                "in `__init__` or `configure_model`."
            )
        chosen = norms[:1] if layers == "first" else norms
        names = [f"re:{re.escape(name)}" for places in chosen for name in places]

    def make(norm: nn.Module) -> nn.Module:
        if before:  # nothing has been replaced yet
            raise _other_choice(owner, module, before)
        return factory(norm)

    report = replace_modules(module, replacement, types=NORMS, names=names, factory=make)
    for name in report.layers:
        layer = module.get_submodule(name)
        if isinstance(layer, SecretNorm) and name not in layer.origin:
            layer.origin.append(name)
    there = private_norms(module)
    if {place for part in there.values() for place in part.origin} != set(report.layers):
        raise _other_choice(owner, module, before)
    shapes = [list(part.shape) for part in there.values()]
    return SurgeryReport(report.layers, report.parameters_added, {**report.layout, "shapes": shapes})


def _other_choice(owner: str, module: nn.Module, before: Mapping[str, SecretNorm]) -> InputError:
    return InputError(
        f"`{owner}` is asked for other private layers than this {type(module).__name__} has, which are {', '.join(before)}. "
        "Ask for the same ones, or build a new module."
    )


def lock_norms(
    owner: str,
    module: nn.Module,
    layers: Layers,
    key_length: int,
    activation: Activation,
    distribution: Distribution,
    spread: float | int,
    chain: bool,
) -> SurgeryReport:
    """Wrap the chosen layers in key locks, which are still locked; a second call changes nothing.

    Args:
        owner: Who asks, for errors.
        module: Changed in place.
        layers: The choice.
        key_length: d.
        activation: Of the locks.
        distribution: Of the keys.
        spread: Of the start.
        chain: Whether each lock after the first takes the scale and shift of the one before for its keys.
    """
    last: list[KeyLockedNorm] = []

    def lock(norm: nn.Module) -> KeyLockedNorm:
        previous = last[-1] if chain and last else None
        last.append(KeyLockedNorm(norm, key_length, activation, distribution, spread, previous))
        return last[-1]

    report = wrap_norms(owner, module, layers, KeyLockedNorm, lock)
    lengths = [layer.secret.key_length for layer in locks_of(module).values()]
    return SurgeryReport(report.layers, report.parameters_added, {**report.layout, "key_lengths": lengths})
