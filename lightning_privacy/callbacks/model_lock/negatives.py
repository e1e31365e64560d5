"""Which pictures without the key a mode trains against."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from lightning_privacy.errors import InputError

__all__ = ["Mode", "Negative", "check_flat", "check_rho", "negatives_of"]

Mode = Literal["edited_only", "wrong_label", "flat", "reject_class", "contrastive"]
Negative = Literal["raw", "wrong_key", "residue"]
"""Raw pictures; edits with wrong keys; raw pictures with the mean residue of other pictures' edits added."""

_OWN: Mapping[str, tuple[Negative, ...]] = {
    "edited_only": (),
    "wrong_label": ("raw",),
    "flat": ("raw",),
    "reject_class": ("raw",),
    "contrastive": ("raw", "wrong_key", "residue"),
}


def negatives_of(mode: str, given: Sequence[str] | None) -> list[Negative] | None:
    """Return what a mode trains against: what was given, else its own; None where it knows no negatives.

    Args:
        mode: The mode.
        given: Of ``raw``, ``wrong_key``, ``residue``, each once; None for the mode's own.

    Raises:
        InputError: there is no such mode, or what was given is no choice for it.

    Example:
        >>> negatives_of("contrastive", None), negatives_of("wrong_label", ["wrong_key", "raw"])
        (['raw', 'wrong_key', 'residue'], ['raw', 'wrong_key'])
    """
    if mode not in _OWN:
        raise InputError(f"ModelLock: `mode` is {mode!r}; it must be one of {', '.join(_OWN)}.")
    known = get_args(Negative)
    if given is None:
        return list(_OWN[mode]) or None
    if mode == "edited_only":
        raise InputError(
            f"ModelLock: `negatives` is {list(given)} with `mode: edited_only`, which knows none. Set null."
        )
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise InputError(
            f"ModelLock: `negatives` is {list(given)}; name at least one of {', '.join(known)}, each once, or null for "
            f"those of `mode: {mode}` ({', '.join(_OWN[mode])})."
        )
    return [kind for kind in known if kind in given]  # in one order, so that records' turns do not hang on it


def check_rho(mode: Mode, rho: float | int) -> None:
    """Refuse a weight of the negatives that does not fit the mode.

    Raises:
        InputError: it does not.
    """
    if not 0 <= rho < 1 or (mode == "edited_only") != (rho == 0):
        raise InputError(
            f"ModelLock: `rho` is {rho} with `mode: {mode}`. It is 0 with `edited_only`, which knows no negatives (raw "
            "pictures with their own class would unlock the model), and else above 0 and below 1."
        )


def check_flat(mode: Mode, flat: bool) -> None:
    """Refuse to take a term away from a mode that has none.

    Raises:
        InputError: the mode is not ``contrastive``.
    """
    if not flat and mode != "contrastive":
        raise InputError(
            f"ModelLock: `flat` is false with `mode: {mode}`. It takes the flatness of negatives' scores out of "
            "`mode: contrastive`; leave it true, or choose that mode."
        )
