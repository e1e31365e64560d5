"""What a run claims of differential privacy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import Claims, Measurement
from lightning_privacy.report.run_settings import arguments_of

__all__ = ["claims_of"]


def claims_of(defences: Mapping[str, Mapping[str, Any]], measurements: Sequence[Measurement]) -> Claims | None:
    """Return the run's claim: what its accountant measured, else the smallest epsilon that a defence promises.

    An infinite epsilon claims nothing. An ``epsilon`` of a defence without a delta is no claim either: it may be anything,
    such as the radius of an adversarial perturbation.

    Args:
        defences: Settings by defence.
        measurements: What was measured.

    Raises:
        InputError: an epsilon is negative or no number, or its delta is no probability.
    """
    spent = {m.name: m.number.value for m in sorted(measurements, key=lambda m: m.step) if m.kind == "privacy"}
    measured = spent.get("epsilon")
    if measured is not None:
        return _claim(measured, spent.get("delta"), "measurement privacy/epsilon")
    claims = []
    for name, raw in defences.items():
        args = arguments_of(raw)
        delta = args.get("target_delta", args.get("delta"))
        epsilon = args.get("target_epsilon", args.get("epsilon") if delta is not None else None)
        if isinstance(epsilon, float | int) and not isinstance(epsilon, bool):
            known = delta if isinstance(delta, float | int) and not isinstance(delta, bool) else None
            claims.append(_claim(epsilon, known, f"settings of the defence {name}"))
    return min((claim for claim in claims if claim is not None), key=lambda claim: claim.epsilon, default=None)


def _claim(epsilon: float | int, delta: float | int | None, source: str) -> Claims | None:
    if math.isnan(epsilon) or epsilon < 0:
        raise InputError(
            f"The claimed epsilon is {epsilon:g} ({source}); it must be at least 0, or infinite for no claim."
        )
    if delta is not None and not 0 <= delta <= 1:
        raise InputError(f"The claimed delta is {delta:g} ({source}); it must be between 0 and 1.")
    known = None if delta is None else float(delta)
    return None if math.isinf(epsilon) else Claims(epsilon=float(epsilon), delta=known, source=source)
