"""What the target and the shadow models say of each record, checked, and its moments over the IN or the OUT shadows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = [
    "SHADOW_SIGNALS",
    "Moments",
    "ShadowEvidence",
    "first_of_each",
    "moments",
    "require_shadows",
    "shadow_evidence",
]

SHADOW_SIGNALS = frozenset({"logits", "labels", "shadow_confidence", "shadow_in"})
"""What an attack with shadow models reads."""

_BLOCK = 2**21  # confidences worked on at once: 16 MiB, so that temporary copies stay small beside the signals
_LARGEST = 1e100  # beyond it squared distances, divided by a tiny variance, would leave the range of float64


@dataclass(frozen=True)
class ShadowEvidence:
    """Scaled confidences phi = log(p / (1 - p)) in the true class, all finite, in float64.

    Args:
        target: Of the audited model.
        shadows: Of the shadow models, in the order in which they were trained.
        inside: Whether the shadow was trained on the record (IN) or not (OUT).
    """

    target: Float[Tensor, "records queries"]
    shadows: Float[Tensor, "records shadows queries"]
    inside: Bool[Tensor, "records shadows"]

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.target)

    def blocks(self) -> Iterator["ShadowEvidence"]:
        """Yield the records a block at a time, in order."""
        size = max(1, _BLOCK // (self.shadows.shape[1] * self.shadows.shape[2]))
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield ShadowEvidence(self.target[rows], self.shadows[rows], self.inside[rows])


@dataclass(frozen=True)
class Moments:
    """Moments of a record's confidences over its IN or its OUT shadows.

    Args:
        count: Number of these shadows.
        centre: Their mean or median; zero where there is none.
        squares: Sum of the squared deviations from their mean.
    """

    count: Int[Tensor, " records"]
    centre: Float[Tensor, "records queries"]
    squares: Float[Tensor, "records queries"]


def shadow_evidence(signals: Signals, attack: str, shadows: int | None = None) -> ShadowEvidence:
    """Return the confidences of the target and of the first so many shadow models.

    Args:
        signals: What was observed, with the fields of `SHADOW_SIGNALS`.
        attack: Who asks, for the errors.
        shadows: Only the first so many shadow models are used; all where None.

    Raises:
        InputError: a field is missing, the fields disagree in shape, there are fewer shadows, or a value is not finite.

    Example:
        >>> given = Signals(
        ...     ("a",),
        ...     logits=torch.tensor([[[3.0, 1.0]]]),
        ...     labels=torch.tensor([0]),
        ...     shadow_confidence=torch.tensor([[[1.0], [2.5]]]),
        ...     shadow_in=torch.tensor([[False, True]]),
        ... )
        >>> shadow_evidence(given, "lira_online").target
        tensor([[2.]], dtype=torch.float64)
    """
    logits, labels, phi, inside = (
        observed(signals, field, attack) for field in ("logits", "labels", "shadow_confidence", "shadow_in")
    )
    target = scaled_confidence(logits.detach(), labels)
    phi = phi.detach().double()
    if phi.shape[:2] != inside.shape or (len(phi), phi.shape[2]) != tuple(target.shape):
        raise InputError(
            f"The attack `{attack}` was given class scores of {tuple(logits.shape)}, `shadow_confidence` of "
            f"{tuple(phi.shape)} and `shadow_in` of {tuple(inside.shape)}; they must be of the same records, the same "
            "queries and the same shadows, so observe target and shadows with one number of queries."
        )
    available = phi.shape[1]
    if not available or not phi.shape[2] or (shadows or 1) > available:
        raise InputError(
            f"The attack `{attack}` needs {shadows or 'at least 1'} shadow models and one query, but {available} and "
            f"{phi.shape[2]} were observed; train more shadows or ask for fewer."
        )
    phi, inside = phi[:, :shadows], inside[:, :shadows]
    for party, values in (("target", target), ("shadow models", phi)):
        # Extremes, not a mask of all values: these may fill the memory. NaN fails both comparisons.
        low, high = values.flatten(1).aminmax(dim=1)
        bad = ~((low >= -_LARGEST) & (high <= _LARGEST))
        if bad.any():
            raise InputError(
                f"The attack `{attack}` was given confidences of the {party} that are NaN, infinite or beyond "
                f"{_LARGEST:g} for {int(bad.sum())} of {len(values)} records; look for diverged "
                "training, or for class scores that were masked with infinity."
            )
    return ShadowEvidence(target, phi, inside)


def require_shadows(
    evidence: ShadowEvidence, attack: str, inside: int, outside: int, remedy: str = "train more shadow models"
) -> None:
    """Check that every record has enough IN and OUT shadows.

    Args:
        evidence: Of the records.
        attack: Who asks, for the error.
        inside: IN shadows that each record needs.
        outside: OUT shadows that each record needs.
        remedy: What to do if it has fewer.

    Raises:
        InputError: a record has fewer.
    """
    counts = evidence.inside.sum(1), (~evidence.inside).sum(1)
    short = (counts[0] < inside) | (counts[1] < outside)
    if short.any():
        raise InputError(
            f"The attack `{attack}` needs {inside} IN and {outside} OUT shadow models of every record, but "
            f"{int(short.sum())} of {len(short)} records have fewer (the fewest of any record: {int(counts[0].min())} "
            f"IN, {int(counts[1].min())} OUT); train each shadow on a balanced half of the records, and {remedy}."
        )


def moments(evidence: ShadowEvidence, inside: bool, center: str = "mean") -> Moments:
    """Return count, centre and sum of squares of each record's confidences under its IN or its OUT shadows.

    Args:
        evidence: Of the records.
        inside: Whether of the IN shadows.
        center: ``"mean"``, or ``"median"`` (of an even number: half-way between the middle two). The squares are taken
            about the mean either way.

    Example:
        >>> phi = torch.tensor([[[1.0], [3.0], [9.0]]], dtype=torch.float64)
        >>> given = ShadowEvidence(phi[:, 0], phi, torch.tensor([[False, False, True]]))
        >>> moments(given, inside=False).centre.item(), moments(given, inside=False).squares.item()
        (2.0, 2.0)
    """
    parts = [_block_moments(block, inside, center) for block in evidence.blocks()]
    if not parts:
        none = evidence.target
        return Moments(evidence.inside.sum(1), none, none)
    return Moments(*(torch.cat(column) for column in zip(*parts, strict=True)))


def first_of_each(mask: Bool[Tensor, "records shadows"], number: int | None) -> Bool[Tensor, "records shadows"]:
    """Return the mask with only the first so many shadows of each record left.

    Args:
        mask: The shadows to choose from; which they are differs between records.
        number: How many of them; all where None.

    Example:
        >>> first_of_each(torch.tensor([[True, False, True, True]]), 2)
        tensor([[ True, False,  True, False]])
    """
    return mask if number is None else mask & (mask.cumsum(1) <= number)


def _block_moments(block: ShadowEvidence, inside: bool, center: str) -> tuple[Tensor, Tensor, Tensor]:
    mask = block.inside if inside else ~block.inside
    count = mask.sum(1)
    # A masked sum, not a product with the mask: nothing of the other side may enter, however large it is.
    chosen = mask.unsqueeze(2)
    mean = block.shadows.where(chosen, 0.0).sum(1) / count.clamp_min(1).unsqueeze(1)
    squares = (block.shadows - mean.unsqueeze(1)).where(chosen, 0.0).square().sum(1)
    if center == "median":
        middle = block.shadows.where(chosen, torch.nan).nanquantile(0.5, dim=1)
        mean = middle.where(count.unsqueeze(1) > 0, 0.0)
    return count, mean, squares
