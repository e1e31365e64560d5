"""Choosing threshold, sign and strongest attack on the attacker's own records, never on evaluation records."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.observed import take
from lightning_privacy.attacks.membership.ridge import stratified_folds
from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.core.results import MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.roc import auroc, fit_threshold

__all__ = ["FittedAttack", "fit_attack", "strongest"]


@dataclass(frozen=True)
class FittedAttack:
    """An attack whose every choice was made on fit data.

    Args:
        attack: The attack, fitted on all fit records.
        sign: +1, or -1 where an attack that learns nothing found members on the low side of its score.
        fit_auroc: Cross-validated AUROC on the fit records, with the sign chosen inside each fold.
        threshold: Cut of the highest balanced accuracy of the cross-validated scores.
        converged: What `MembershipAttack.fit` said of the fit on all records.
        pooled_auroc: AUROC over the fit records of all folds together; decides between attacks of equal ``fit_auroc``,
            of which few records leave many.
    """

    attack: MembershipAttack
    sign: int
    fit_auroc: float
    threshold: float
    converged: bool
    pooled_auroc: float = 0.5

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the oriented score, higher = more member-like."""
        return self.sign * self.attack.score(signals).double()


def _learns(attack: MembershipAttack) -> bool:
    # An attack without the attribute is taken to learn its own orientation from the labels it is given.
    return bool(getattr(attack, "learns", True))


def _fitted(
    attack: MembershipAttack, members: Signals, nonmembers: Signals, seed: int
) -> tuple[MembershipAttack, int, bool]:
    """Return a fitted copy, its sign on the very records it was fitted on, and whether it converged."""
    fresh = copy.deepcopy(attack)
    converged = fresh.fit(members, nonmembers, seed)
    if _learns(attack):
        return fresh, 1, converged
    return fresh, 1 if auroc(fresh.score(members), fresh.score(nonmembers)) >= 0.5 else -1, converged


def fit_attack(
    attack: MembershipAttack, members: Signals, nonmembers: Signals, seed: int = 0, folds: int = 5
) -> FittedAttack:
    """Fit an attack on all fit records, and cross-validate it on them for sign, threshold and strength.

    The AUROC is averaged over folds: scores of two fits need not share a scale, and a sign chosen without a fold depends
    on the others, so that comparing across folds would favour, on noise, the attacks whose sign is free. So noise gives
    0.5 on average.

    Args:
        attack: Left as it is; a copy is fitted.
        members: Signals of records known to be members (``aux_member``).
        nonmembers: Signals of records known not to be (``attack_nonmember``).
        seed: Seed of the fit and of the folds.
        folds: At most so many; an attack that is dear to fit may set a lower bound as its attribute ``folds``.

    Raises:
        InputError: fewer than four records on a side.
    """
    sizes = (len(members), len(nonmembers))
    if min(sizes) < 4:
        raise InputError(
            f"The attack `{attack.name}` has {sizes[0]} members and {sizes[1]} non-members to fit on, but needs at "
            "least 4 of each; enlarge `aux_member` and `attack_nonmember` of the split."
        )
    folds = min(folds, getattr(attack, "folds", folds), *(size // 2 for size in sizes))
    labels = torch.tensor([1] * sizes[0] + [0] * sizes[1])
    fold = stratified_folds(labels, folds, seeded_generator(seed, "membership folds"))
    fold_of = (fold[: sizes[0]], fold[sizes[0] :])
    held_scores = tuple(torch.empty(size, dtype=torch.float64) for size in sizes)
    fold_aurocs = []
    for k in range(folds):
        inside = [take(x, (f != k).nonzero().squeeze(1)) for x, f in zip((members, nonmembers), fold_of, strict=True)]
        fresh, sign, _ = _fitted(attack, inside[0], inside[1], derive_seed(seed, "fold", k))
        for side, signals, f in zip(held_scores, (members, nonmembers), fold_of, strict=True):
            rows = (f == k).nonzero().squeeze(1)
            side[rows] = sign * fresh.score(take(signals, rows)).double()
        fold_aurocs.append(auroc(held_scores[0][fold_of[0] == k], held_scores[1][fold_of[1] == k]))
    final, sign, converged = _fitted(attack, members, nonmembers, seed)
    if not _learns(attack):  # then its scores on all fit records are as honest as those of a fold, and more of them
        held_scores = tuple(sign * final.score(x).double() for x in (members, nonmembers))
    threshold, pooled = fit_threshold(*held_scores), auroc(*held_scores)
    return FittedAttack(final, sign, sum(fold_aurocs) / folds, threshold, converged, pooled)


def strongest(fitted: Mapping[str, FittedAttack]) -> str:
    """Return the name of the attack of the highest cross-validated AUROC on fit data."""
    if not fitted:
        raise InputError("There is no attack to choose from; name at least one.")
    return max(fitted, key=lambda name: (fitted[name].fit_auroc, fitted[name].pooled_auroc))
