"""Training whose best moment is chosen on the attacker's own pictures, which every trained attack shares."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.lock.target import accuracy_of
from lightning_privacy.core.randomness import seeded_generator

__all__ = ["Trained", "train_best"]

Pictures = Float[Tensor, "n channels height width"]
_CHECKS = 20  # times that a training is looked at, chosen here


@dataclass(frozen=True)
class Trained:
    """A network at its best moment.

    Args:
        network: With the weights of that moment, in evaluation mode.
        accuracy: On the pictures for choices then.
        loss: Cross-entropy there.
        steps: Steps that were taken in all.
        converged: Whether that moment lies before the last tenth of the training.
    """

    network: nn.Module
    accuracy: float
    loss: float
    steps: int
    converged: bool


def train_best(
    network: nn.Module,
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    n: int,
    classify: Callable[[Pictures], Float[Tensor, "n classes"]],
    val: tuple[Pictures, Int[Tensor, " v"]],
    *,
    rate: float,
    steps: int,
    batch: int,
    seed: int,
) -> Trained:
    """Train a network and return it as it was when it did best on pictures that are not scored.

    Args:
        network: Its weights that ask for gradients are trained, in place.
        loss: Rows of the training pictures -> what is minimised.
        n: Number of training pictures.
        classify: What is judged, by the network's present weights.
        val: Pictures for the choice, and their classes.
        rate: Of AdamW, falling to 0 by a cosine.
        steps: Of the optimizer.
        batch: Pictures a step; all where there are fewer.
        seed: Of their order.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = seeded_generator(seed, "order")
    every = max(1, steps // _CHECKS)
    best: tuple[float, float] | None = None
    at, kept = 0, network.state_dict()
    # Small sets leave batches of one, whose statistics are nothing to normalise by.
    for step in range(1, steps + 1):
        rows = torch.randperm(n, generator=generator)[: min(batch, n)]
        network.train(len(rows) > 1)
        optimizer.zero_grad(set_to_none=True)
        loss(rows).backward(inputs=weights)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == steps:
            network.eval()
            with torch.no_grad():
                entropy = float(F.cross_entropy(classify(val[0]).float(), val[1]))
            found = accuracy_of(classify, *val), -entropy
            if best is None or found > best:
                best, at, kept = found, step, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    network.eval()
    reached, entropy = best if best is not None else (0.0, 0.0)
    return Trained(network, reached, -entropy, steps, at <= 0.9 * steps)
