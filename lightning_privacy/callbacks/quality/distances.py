"""Distances between two sets of pictures, with what their counts allow."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.quality.extractors import METRICS, build_extractor
from lightning_privacy.core.results import Metric
from lightning_privacy.metrics.functional.frechet import frechet_distance, kernel_distance

__all__ = ["distance_between", "set_distances"]


def distance_between(
    kind: str, real: Float[Tensor, "n features"], fake: Float[Tensor, "m features"]
) -> Mapping[str, Any]:
    """Return the value of a distance, its interval where it has one, and what its counts forbid.

    Args:
        kind: ``frechet`` or ``kernel``.
        real: Features of one set.
        fake: Features of the other.
    """
    fewest, width = min(len(real), len(fake)), real.shape[1]
    if fewest < 3:
        return {"value": None, "valid": False, "reason": f"{fewest} pictures on a side: at least 3 needed"}
    if kind == "kernel":
        value, error = kernel_distance(real, fake)
        return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
    reason = ""
    if fewest <= width:
        reason = f"fewer pictures ({fewest}) than features ({width}): compare with equal counts only"
    return {"value": frechet_distance(real, fake), "reason": reason}


def set_distances(
    names: Sequence[str],
    real: Float[Tensor, "n channels height width"],
    fake: Float[Tensor, "m channels height width"],
) -> dict[str, Metric]:
    """Return distances between two sets of pictures by name; one of few pictures is marked as not valid.

    Args:
        names: Of `extractors.METRICS`.
        real: Pictures in [0, 1], of one or three channels.
        fake: The others.

    Raises:
        InputError: an extractor's weights are not at hand.
    """
    found = {}
    for name in names:
        extractor, kind = METRICS[name]
        network = build_extractor(extractor)
        with torch.no_grad():
            features = [network(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x) for x in (real, fake)]
        line = distance_between(kind, *features)
        value, reason = line["value"], line.get("reason", "")
        found[name] = Metric(
            float("nan") if value is None else value, line.get("low"), line.get("high"), not reason, reason
        )
    return found
