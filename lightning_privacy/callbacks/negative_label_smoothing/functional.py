r"""The mathematics of negative label smoothing (arXiv 2310.06549, Struppek et al., ICLR 2024), as pure functions.

| symbol | here | meaning |
|---|---|---|
| ``alpha`` | ``factor`` | smoothing factor, at most 1 |
| ``K`` | | number of classes |
| ``z_k`` | ``logits`` | class scores of a record, ``y`` its class |
| ``CE_k`` | | cross-entropy against class k, ``log sum_j exp z_j - z_k`` |

The smoothed label is ``(1 - alpha) onehot(y) + alpha / K``, and the smoothed cross-entropy is
``(1 - alpha) CE_y + alpha mean_k CE_k = CE_y + alpha (z_y - mean_k z_k)``: the log-sum cancels, so that only the second
term is added to a cross-entropy that the module has computed already.
"""

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["margin_over_mean", "scheduled_factor"]


def margin_over_mean(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return ``z_y - mean_k z_k`` of each record, which is ``mean_k CE_k - CE_y``.

    Args:
        logits: Class scores before the softmax.
        labels: Classes, 0 to K - 1.

    Example:
        >>> import torch
        >>> margin_over_mean(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0])).item()
        2.0

    Source:
        arXiv 2310.06549, section 3, the definition of the smoothed label, put into the cross-entropy.
    """
    return logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)


def scheduled_factor(factor: float, done: float, warmup: float, ramp: float) -> float:
    """Return the factor in force when a share of training is done: 0, then linear, then the whole factor.

    Args:
        factor: Final smoothing factor.
        done: Share of training that is done, 0 to 1.
        warmup: Share without smoothing.
        ramp: Share after it over which the factor grows.

    Example:
        >>> [scheduled_factor(-0.1, done, 0.5, 0.25) for done in (0.0, 0.49, 0.625, 0.75, 0.99)]
        [0.0, 0.0, -0.05, -0.1, -0.1]

    Source:
        Released code: none for the first half of the epochs, all of it in the last quarter.
    """
    if done < warmup:
        return 0.0
    return factor if done >= warmup + ramp else factor * ((done - warmup) / ramp)
