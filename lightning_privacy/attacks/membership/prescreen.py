"""A first look without shadow models: has the tail of high losses vanished among the members?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import mean_confidence
from lightning_privacy.core.results import Metric, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.bootstrap import percentile_interval, record_replicates
from lightning_privacy.metrics.functional.roc import OperatingPoints, operating_points

__all__ = ["Prescreen", "prescreen"]

_MIN_MISSED = 10  # as for a true-positive rate: a cut that rests on fewer members is the luck of a few records


@dataclass(frozen=True)
class Prescreen:
    """What the tail of high losses says of a model.

    Args:
        tnr: Share of the non-members in the tail, with its 95 % interval. At most about ``fnr``: members' losses reach
            as high as others', and the loss shows nothing. Near one: the model has learnt its members' outliers, and
            attacks with shadow models will find members among them.
        fnr: Largest allowed share of members in the tail.
        moved: ``tnr`` minus the share of members that are in the tail: the share of members that would lie there had
            they not been trained on.
        cut: Records with a smaller phi = log(p_y / (1 - p_y)) are the tail.
        in_tail: Ids of the members that are still in the tail: training did not move them, and the loss attack calls
            them non-members.
        n: How many members and non-members were looked at.
    """

    tnr: Metric
    fnr: float
    moved: float
    cut: float
    in_tail: tuple[str, ...]
    n: tuple[int, int]


def prescreen(
    members: Signals, nonmembers: Signals, fnr: float = 0.01, bootstrap: int = 1000, seed: int = 0
) -> Prescreen:
    r"""Return the true-negative rate of the loss attack at a low false-negative rate, and the members still in the tail.

    Symbols: the cut c is the largest with #{members: phi < c} <= fnr * #members; TNR = #{non-members: phi < c} / #others.

    It judges the model, and needs no shadow model and no fit. What it cannot say: which of the members outside of the
    tail are at risk (an easy record and a memorised outlier have the same low loss, and telling them apart is what
    shadow models are for); that a member in the tail is safe from any attack but a cut of the loss (a model may betray
    a record by an unusually high loss); and anything of a model whose losses were made alike on purpose, by clipped or
    rounded outputs or a defence aimed at the loss. A low TNR is no certificate; a high one is a reason to train shadows.

    Args:
        members: Records of the training data.
        nonmembers: Records of the same distribution outside of it.
        fnr: Allowed share of members in the tail, in (0, 1).
        bootstrap: Resamples of the records for the interval, which is widened to the Clopper-Pearson interval at the fixed cut
            where that is wider.
        seed: Of the resamples.

    Raises:
        InputError: a side is empty, or ``fnr`` is out of range.

    Source:
        arXiv 2510.19773 (the predictor and the argument of the vanished tail; a model-level measure there too). The
        default rate, the interval and the list of records are ours.
    """
    if not 0 < fnr < 1:
        raise InputError(f"`fnr` must lie between 0 and 1, not {fnr}.")
    if not len(members) or not len(nonmembers):
        raise InputError(
            f"A pre-screen compares members with non-members, but there are {len(members)} and {len(nonmembers)}."
        )
    inside, outside = (mean_confidence(x, "prescreen").cpu() for x in (members, nonmembers))

    # Non-members with a high loss are what is looked for, members with one the false alarms: the roles change places.
    def statistic(points: OperatingPoints) -> Tensor:
        return points.tpr_at_fpr(fnr)

    value = float(operating_points(-outside, -inside).tpr_at_fpr(fnr))
    generator = torch.Generator().manual_seed(seed)
    (replicates,) = record_replicates([(-outside, -inside)], statistic, bootstrap, generator)
    low, high = percentile_interval(replicates)
    exact = clopper_pearson(round(value * len(outside)), len(outside))
    allowed = math.floor(fnr * len(inside) + 1e-9)
    cut = float(inside.sort().values[allowed])
    tail = (inside < cut).nonzero().squeeze(1).tolist()
    enough = fnr * len(inside) >= _MIN_MISSED
    reason = (
        f"{len(inside)} members cannot support a false-negative rate of {fnr:g}: at least "
        f"{math.ceil(_MIN_MISSED / fnr)} needed"
    )
    return Prescreen(
        Metric(value, min(low, float(exact[0])), max(high, float(exact[1])), enough, "" if enough else reason),
        fnr,
        value - len(tail) / len(inside),
        cut,
        tuple(members.record_ids[i] for i in tail),
        (len(inside), len(outside)),
    )
