"""Scores that call a record a member on either side of the usual, and what looking on both sides costs."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["null_two_sided_auroc", "two_sided"]

_STEPS, _END = 4000, 10.0  # trapezoids of the integral over |z|, whose tail beyond 10 is below 1e-22


def two_sided(
    scores: Float[Tensor, " records"], fit_scores: Float[Tensor, " fit_records"]
) -> Float[Tensor, " records"]:
    """Return how far each score lies from the median of scores of fit records, on either side.

    It finds members that a defence moved to both sides, or to a side that the attacker does not know. The centre comes
    from records that are not judged (non-members, best), so that the AUROC of noise stays at .5. The price is power: a
    one-sided attack of the right sign sees a plain shift far better.

    It is not the same as reporting the larger of A and 1 - A, which looks at the judged records and is above .5 on noise:
    see `null_two_sided_auroc`.

    Args:
        scores: One-sided scores of the records to be judged.
        fit_scores: Scores, under the same attack, of records that are not judged.

    Returns:
        Distances in float64, higher = more member-like.

    Raises:
        InputError: no fit score, or their median is not finite.

    Example:
        >>> two_sided(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([-1.0, 0.0, 1.0]))
        tensor([2., 0., 3.], dtype=torch.float64)
    """
    centre = fit_scores.double().median() if len(fit_scores) else torch.tensor(torch.nan)
    if not centre.isfinite():
        raise InputError(
            f"The centre of a two-sided score is {float(centre)}: the median of {len(fit_scores)} fit scores must be "
            "finite; give scores of fit records without NaN."
        )
    return (scores.double() - centre).abs()


def null_two_sided_auroc(n_member: int, n_nonmember: int, attacks: int = 1) -> float:
    r"""Return the mean, on scores that say nothing, of the largest of A and 1 - A over independent attacks.

    It is :math:`1/2 + s \int_0^\infty 1 - (2 \Phi(z) - 1)^k dz` with the null standard deviation s of one AUROC
    (Mann-Whitney) and k attacks; for one attack :math:`1/2 + s \sqrt{2 / \pi}`.

    Args:
        n_member: Number of judged members.
        n_nonmember: Number of judged non-members.
        attacks: Number of independent attacks among which the largest is picked.

    Raises:
        InputError: a count below 1.

    Example:
        >>> [round(null_two_sided_auroc(40, 80, attacks), 3) for attacks in (1, 5)]
        [0.545, 0.588]
    """
    if min(n_member, n_nonmember, attacks) < 1:
        raise InputError(
            f"A null AUROC needs a record on each side and an attack, not {n_member} members, {n_nonmember} non-members "
            f"and {attacks} attacks."
        )
    z = torch.linspace(0, _END, _STEPS + 1, dtype=torch.float64)
    mean = float(torch.trapezoid(1 - (2 * torch.special.ndtr(z) - 1) ** attacks, z))
    return 0.5 + mean * math.sqrt((n_member + n_nonmember + 1) / (12 * n_member * n_nonmember))
