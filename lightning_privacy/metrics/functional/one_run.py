r"""Lower bound on epsilon from one training run: canaries included by fair coins, and how many were guessed right.

Symbols: :math:`m` canaries, each included with probability 1/2 independently of the others; from the trained model the
auditor guesses of :math:`r` of them whether they were included and abstains on the rest; :math:`v` guesses are right.

Theorem. If training is (epsilon, delta)-DP, then, with :math:`f(v) = P[Binomial(r, q) \ge v]` and
:math:`q = e^\epsilon / (1 + e^\epsilon)`,

.. math::
    P[\text{at least } v \text{ right}] \le f(v) + 2 m \delta \alpha, \qquad
    \alpha = \max_{1 \le i \le v} \frac{f(v - i) - f(v)}{i}.

With delta = 0 the right guesses are dominated by those of randomised response: given the model, each included bit has
posterior odds of at most :math:`e^\epsilon`, whatever the other bits. With delta > 0 the domination may fail on a number
:math:`F` of canaries, whose mean is at most :math:`2 m \delta`; each failure gives away one right guess. Giving away
:math:`i` at once lifts the probability from :math:`f(v)` to :math:`f(v - i)` and costs :math:`i` of the mean, so that the
best return is :math:`\alpha` a unit of it.

The bound on epsilon is the largest epsilon at which the right side stays at or below 1 - level.

Source: Steinke, Nasr and Jagielski, arXiv 2305.08846, Theorem 5.2, Corollary 5.4 and appendix D.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["one_run_counts", "one_run_epsilon", "one_run_p_value"]

_STEPS = 60  # halvings of an interval that is some units wide: to the last digit of a float


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float | int, delta: float | int = 0) -> float:
    """Return how probable so many right guesses are, at most, under (epsilon, delta)-DP.

    Args:
        canaries: Number ``m`` of records that were included by a fair coin.
        guesses: Number ``r`` of them on which the auditor did not abstain.
        right: Number ``v`` of right guesses.
        epsilon: Hypothesised epsilon, at least 0.
        delta: Hypothesised delta, in [0, 1).

    Raises:
        InputError: counts out of order, or an epsilon or delta that is none.

    Example:
        >>> round(one_run_p_value(1000, 100, 75, epsilon=0.673, delta=1e-4), 3)
        0.05
    """
    _check(canaries, guesses, right, delta)
    if not epsilon >= 0:
        raise InputError(f"Epsilon is a number of at least 0, but {epsilon} was given.")
    if right == 0:
        return 1.0
    q = 1 / (1 + math.exp(-epsilon))
    tail = float(betainc(right, guesses - right + 1, q))
    if delta == 0:
        return tail
    below = np.arange(right - 1, -1, -1)
    log_mass = gammaln(guesses + 1) - gammaln(below + 1) - gammaln(guesses - below + 1)
    mass = np.exp(log_mass + xlogy(below, q) + xlog1py(guesses - below, -q))
    # Summed from the top, f(v - i) - f(v) has no cancellation where both are nearly one.
    alpha = float((mass.cumsum() / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * alpha)


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float | int = 0, level: float = 0.95) -> float:
    """Return the epsilon that one training run certifies, at least 0.

    Args:
        canaries: Number ``m`` of records that were included by independent fair coins. A split of fixed size is not
            that.
        guesses: Number ``r`` of them on which the auditor did not abstain; how many must not be chosen by looking at
            how many were right.
        right: Number ``v`` of right guesses.
        delta: The delta at which epsilon is bounded, in [0, 1).
        level: Confidence in (0.5, 1).

    Raises:
        InputError: counts out of order, or a delta or level that is none.

    Example:
        >>> round(one_run_epsilon(100, 100, 90), 2)
        1.63
        >>> round(one_run_epsilon(1000, 100, 75, delta=1e-4), 3)
        0.673
    """
    _check(canaries, guesses, right, delta)
    if not 0.5 < level < 1:
        raise InputError(f"The level of a one-run audit lies between 0.5 and 1, but {level} was given.")
    if right == 0:
        return 0.0
    q = float(betaincinv(right, guesses - right + 1, 1 - level))
    without_delta = math.log(q) - math.log1p(-q)
    if without_delta <= 0 or delta == 0:
        return max(0.0, without_delta)
    if one_run_p_value(canaries, guesses, right, 0, delta) > 1 - level:
        return 0.0
    # The p-value rises with epsilon while it is small. Where it is below P[binomial >= its mode], the best i reaches past
    # the mode and is no smaller than 2 m delta, so that it is a mixture of f(v) and f(v - i), both of which rise.
    low, high = 0.0, without_delta
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rejected = one_run_p_value(canaries, guesses, right, middle, delta) <= 1 - level
        low, high = (middle, high) if rejected else (low, middle)
    return low


def one_run_counts(
    scores: Float[Tensor, " canaries"], included: Bool[Tensor, " canaries"], top: int, bottom: int
) -> tuple[int, int, int]:
    """Return (canaries, guesses, right) when the highest scores are guessed included and the lowest left out.

    Records that tie across the edge of the top or the bottom are abstained on, so that nothing hangs on their order.

    Args:
        scores: One score a canary, higher = more member-like, from the model alone.
        included: Whether the coin put the canary into the training set.
        top: How many are guessed included, fixed beforehand.
        bottom: How many are guessed left out; with ``top`` at most the number of canaries.

    Raises:
        InputError: more guesses than canaries, or a score is NaN.

    Example:
        >>> one_run_counts(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, True, True, True]), 2, 2)
        (4, 4, 3)
    """
    if min(top, bottom) < 0 or top + bottom > len(scores):
        raise InputError(
            f"Of {len(scores)} canaries the auditor cannot guess {top} included and {bottom} left out; both counts "
            "are at least 0 and together at most the number of canaries."
        )
    if scores.isnan().any():
        raise InputError(
            f"{int(scores.isnan().sum())} of {len(scores)} canary scores are NaN; the attack failed there."
        )
    ordered = scores.sort(descending=True).values
    guessed_in = _beyond(scores, ordered, top)
    guessed_out = _beyond(-scores, -ordered.flip(0), bottom)
    right = (guessed_in & included).sum() + (guessed_out & ~included).sum()
    return len(scores), int((guessed_in | guessed_out).sum()), int(right)


def _beyond(scores: Tensor, descending: Tensor, count: int) -> Tensor:
    """Mark the ``count`` highest scores, fewer where the last of them ties with the next."""
    if count == len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > descending[count]


def _check(canaries: int, guesses: int, right: int, delta: float | int) -> None:
    if not 0 <= right <= guesses <= canaries or canaries < 1:
        raise InputError(
            "A one-run audit needs 0 <= right <= guesses <= canaries and a canary at least, but was given "
            f"{right} right of {guesses} guesses on {canaries} canaries."
        )
    if not 0 <= delta < 1:
        raise InputError(f"Delta is a probability below 1, but {delta} was given; use 0 or the claimed delta.")
