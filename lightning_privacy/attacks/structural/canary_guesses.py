"""Guessing the coins of planted canaries from a model's scores, with abstention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.one_run import one_run_counts, one_run_epsilon

__all__ = ["SHARES", "CoinGuesses", "guess_coins", "strongest_epsilon"]

# Chosen here, before any coin is looked at: few sure guesses serve a small leak, all of them a large one. The bound is
# made at 1 - 0.05 / 3 for each, so that their maximum holds at 95 %.
SHARES = (0.1, 0.5, 1.0)


@dataclass(frozen=True)
class CoinGuesses:
    """Guesses about the coins of the most extreme canaries.

    Args:
        correct: Guesses that were right.
        guesses: k+ guesses of "in" and as many of "out".
        canaries: All canaries, those abstained from included.
    """

    correct: int
    guesses: int
    canaries: int


def guess_coins(
    scores: Float[Tensor, " canaries"], coins: Bool[Tensor, " canaries"], share: float | int = 1.0, seed: int = 0
) -> CoinGuesses:
    """Guess "in" for the k+ canaries of the highest score, "out" for the k- of the lowest, and abstain from the rest.

    Scores that tie are put in an order drawn without looking at the coins.

    Args:
        scores: Higher is more member-like.
        coins: True where the canary was trained on.
        share: Share of the canaries that are guessed, in (0, 1]; k+ = k- = half of it, rounded down, at least one.
        seed: Of the order of ties.

    Raises:
        InputError: fewer than two canaries, scores that are not finite, or a share outside (0, 1].

    Example:
        >>> guess_coins(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([True, False, True, False]), share=0.5)
        CoinGuesses(correct=2, guesses=2, canaries=4)

    Source:
        arXiv 2305.08846, algorithm 1 (the guesses) and section 5 (abstention).
    """
    n = len(scores)
    if n < 2 or len(coins) != n:
        raise InputError(f"Guessing coins needs at least two canaries and one coin each, not {n} and {len(coins)}.")
    if not 0 < share <= 1:
        raise InputError(f"The share of canaries that are guessed lies in (0, 1]; it cannot be {share}.")
    if not bool(scores.isfinite().all()):
        raise InputError("The scores of some canaries are not finite, so they have no order; the model diverged.")
    shuffled = torch.randperm(n, generator=seeded_generator("canary ties", seed))
    order = shuffled[scores[shuffled].sort(stable=True, descending=True).indices]
    each = max(1, int(share * n) // 2)
    # Ranks instead of scores, because what ties across an edge would not be guessed at all.
    ranks = torch.empty(n)
    ranks[order] = torch.arange(n, 0, -1).float()
    canaries, guesses, right = one_run_counts(ranks, coins, each, each)
    return CoinGuesses(right, guesses, canaries)


def strongest_epsilon(
    guesses: Sequence[CoinGuesses], delta: float | int = 0.0, level: float = 0.95, tests: int | None = None
) -> float:
    """Return the largest one-run lower bound on epsilon over several ways to guess, valid at ``level`` for all of them.

    Args:
        guesses: Outcomes of the same canaries under different shares or scores.
        delta: Of (epsilon, delta).
        level: Joint confidence; each bound is made at 1 - (1 - level) / tests (Bonferroni).
        tests: How many bounds the maximum runs over; the number given here where nothing else is tested.

    Returns:
        Epsilon, 0 where nothing is shown.

    Raises:
        InputError: no guesses, or fewer than one test.

    Example:
        >>> round(strongest_epsilon([CoinGuesses(90, 100, 100)]), 2)
        1.63

    Source:
        arXiv 2305.08846, theorem 5.2.
    """
    tests = len(guesses) if tests is None else tests
    if not guesses or tests < 1:
        raise InputError(
            f"A bound on epsilon needs guesses at one share at least and counts as one test at least, but there are "
            f"{len(guesses)} and {tests}; give `shares` such as {SHARES}."
        )
    each = 1 - (1 - level) / tests
    bounds = [
        one_run_epsilon(canaries=g.canaries, guesses=g.guesses, right=g.correct, delta=delta, level=each)
        for g in guesses
    ]
    return max([0.0, *bounds])
