"""The inversion attacks on single pictures by name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_privacy.attacks.inversion.latent import LatentOptimisation
from lightning_privacy.attacks.inversion.optimisation import OptimisationFromDecoder, WhiteBoxOptimisation
from lightning_privacy.attacks.inversion.sparse_adaptive import (
    SurrogateFromDecoder,
    SurrogateOptimisation,
    SynthesisAttack,
)
from lightning_privacy.attacks.inversion.target import InversionAttack
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.errors import InputError

__all__ = ["DEFAULT_ATTACKS", "INVERSION_ATTACKS", "build_inversion_attacks"]

INVERSION_ATTACKS: dict[str, type] = {
    attack.name: attack
    for attack in (
        TrainedDecoder,
        WhiteBoxOptimisation,
        OptimisationFromDecoder,
        LatentOptimisation,
        SynthesisAttack,
        SurrogateOptimisation,
        SurrogateFromDecoder,
    )
}
"""Each is built without required arguments."""

DEFAULT_ATTACKS = ("trained_decoder", "optimisation_from_decoder")
"""What an audit runs where nobody says otherwise."""


def build_inversion_attacks(
    names: Sequence[str], arguments: Mapping[str, Mapping[str, Any]] | None = None
) -> list[InversionAttack]:
    """Return new attacks; those that start from the trained decoder share the one that is attacked with.

    Args:
        names: Their names.
        arguments: Of each constructor, by name.

    Raises:
        InputError: an attack or an argument is unknown, or an attack is named twice.

    Example:
        >>> [attack.name for attack in build_inversion_attacks(["trained_decoder"], {"trained_decoder": {"width": 8}})]
        ['trained_decoder']
    """
    if len(set(names)) < len(names):
        raise InputError(f"An inversion audit names each attack once, but was given {', '.join(names)}.")
    given = arguments or {}
    built: dict[str, InversionAttack] = {}
    for name in sorted(names, key=lambda each: each != TrainedDecoder.name):
        if name not in INVERSION_ATTACKS:
            raise InputError(f"There is no inversion attack `{name}`; there are {', '.join(INVERSION_ATTACKS)}.")
        made = INVERSION_ATTACKS[name]
        own, known = dict(given.get(name, {})), inspect.signature(made).parameters
        if unknown := sorted(set(own) - set(known)):
            raise InputError(
                f"The inversion attack `{name}` has no argument `{unknown[0]}`; it has {', '.join(known)}."
            )
        if "decoder" in known and TrainedDecoder.name in built:
            own.setdefault("decoder", built[TrainedDecoder.name])
        built[name] = made(**own)
    return [built[name] for name in names]
