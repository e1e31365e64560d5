"""Use of a locked detector without its key: pictures edited somehow, or a copy that is trained on."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.lock.target import Cost
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.metrics.detection import DetectionScores

__all__ = ["DetectorWay", "Scenes", "ap50", "best_edit", "box_objects", "residue_edits", "trained_on"]

Pictures = Float[Tensor, "n channels height width"]
Objects = Sequence[Mapping[str, Tensor]]
Find = Callable[[Pictures], Objects]
Edit = Callable[[Pictures], Pictures]
_ROWS = 16
_FLAT = 0.02  # of AP50: what counts as hardly more, chosen here
_WEIGHTS = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Scenes:
    """Pictures with what is in them.

    Args:
        raw: As they are.
        keyed: Edited with the key.
        targets: ``boxes``, ``labels`` and further tensors, a mapping a picture.
    """

    raw: Pictures
    keyed: Pictures
    targets: list[dict[str, Tensor]]

    def at(self, rows: Sequence[int]) -> "Scenes":
        """Return some of them."""
        index = list(rows)
        return Scenes(self.raw[index], self.keyed[index], [self.targets[i] for i in index])


@dataclass(frozen=True)
class DetectorWay:
    """One way to detect without the key.

    Args:
        find: Raw pictures -> detections.
        own: AP50 on the attacker's pictures for choices, from 0 to 1.
        cost: What it took.
        chosen: What was chosen there, in words.
        converged: Whether the last quarter of a training hardly found more; of what is not trained, true.
    """

    find: Find
    own: float
    cost: Cost
    chosen: str = ""
    converged: bool = True


def box_objects(found: Objects) -> list[dict[str, Tensor]]:
    """Return detections or targets without their masks, on the CPU."""
    return [{k: v.detach().cpu() for k, v in each.items() if k in ("boxes", "labels", "scores")} for each in found]


def ap50(find: Find, images: Pictures, targets: Objects) -> tuple[float, list[dict[str, Tensor]]]:
    """Return the average precision of boxes at IoU .5, 0 where nothing is found, and the detections.

    Args:
        find: Pictures -> detections.
        images: Pictures.
        targets: What is in them.
    """
    found = [each for part in images.split(_ROWS) for each in box_objects(find(part))]
    scores = DetectionScores(masks=False, sync=False)
    scores.update(found, box_objects(targets))
    return scores.compute().get("box_ap50", 0.0), found


def residue_edits(own: Scenes) -> dict[str, Edit]:
    """Return edits that add the mean of ``keyed - raw``, by their weights in words; see `MeanResidual`."""
    mean = (own.keyed - own.raw).mean(0)
    return {f"{w:g} times the mean": lambda x, w=w: (x + w * mean.to(x)).clamp(0, 1) for w in _WEIGHTS}


def best_edit(find: Find, edits: Mapping[str, Edit], val: Scenes, cost: Cost, tell: bool = True) -> DetectorWay:
    """Return the detector behind the edit that finds most on the attacker's own pictures.

    Args:
        find: The stolen detector.
        edits: Candidates by name.
        val: The attacker's pictures for choices.
        cost: What they took before.
        tell: Whether the choice may be named: a prompt may be the owner's.
    """
    reached = {name: ap50(lambda x, e=edit: find(e(x)), val.raw, val.targets)[0] for name, edit in edits.items()}
    name = max(reached, key=lambda each: reached[each])
    edit, tried = edits[name], len(edits) * len(val.raw)
    full = Cost(cost.labels, cost.pairs, cost.edits + tried, cost.queries + tried, cost.steps)
    return DetectorWay(lambda x: find(edit(x)), reached[name], full, name if tell else f"1 of {len(edits)}")


def trained_on(
    module: Any, own: Scenes, val: Scenes, k: int, steps: int, rates: Sequence[float], seed: int, fresh: bool = False
) -> DetectorWay:
    """Return a copy of a detector that was trained on labelled raw pictures; the rate is chosen on others.

    Args:
        module: With ``batch_loss(batch)`` and ``detections(images)``; stays as it is.
        own: The attacker's pictures to train on.
        val: Those for choices.
        k: How many of the former are labelled.
        steps: Optimizer steps (AdamW, 8 pictures each).
        rates: Learning rates.
        seed: Of the order, and of fresh weights.
        fresh: Whether the weights are drawn anew, so that nothing of the stolen ones is used.
    """
    best: DetectorWay | None = None
    for rate in rates:
        twin = copy.deepcopy(module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lock detector", k))
            for layer in twin.modules() if fresh else ():
                if callable(getattr(layer, "reset_parameters", None)):
                    layer.reset_parameters()
            weights = [p.requires_grad_() for p in twin.parameters() if p.is_floating_point()]
            optimizer = torch.optim.AdamW(weights, lr=rate)
            before = 0.0
            for step in range(steps):
                if step == steps * 3 // 4:
                    before = ap50(twin.detections, val.raw, val.targets)[0]
                rows = torch.randint(k, (min(k, 8),)).tolist()
                part = own.at(rows)
                optimizer.zero_grad()
                twin.batch_loss({"image": part.raw, "target": part.targets}).backward()
                torch.nn.utils.clip_grad_norm_(weights, 10.0)  # boxes' losses have heavy tails
                optimizer.step()
        reached = ap50(twin.detections, val.raw, val.targets)[0]
        if best is None or reached > best.own:
            cost, flat = Cost(labels=k, steps=steps * len(rates)), reached - before <= _FLAT
            best = DetectorWay(twin.detections, reached, cost, f"rate {rate:g}", flat)
    if best is None:
        raise ValueError("trained_on needs at least one rate")
    return best
