"""The classifier's confidence in the true class on a scale that is close to normal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["scaled_confidence"]


def scaled_confidence(
    logits: Float[Tensor, "records queries classes"], labels: Int[Tensor, " records"]
) -> Float[Tensor, "records queries"]:
    """Return phi = log(p_y / (1 - p_y)), where p_y is the softmax probability of the true class y.

    It is computed as z_y - logsumexp of the other logits, in float64: through the probability itself it would saturate
    at the float's last digit below one, where members lie.

    Args:
        logits: Class scores z; at least two classes.
        labels: The true class of each record.

    Example:
        >>> scaled_confidence(torch.tensor([[[200.0, 0.0]]]), torch.tensor([0]))
        tensor([[200.]], dtype=torch.float64)

    Source:
        arXiv 2112.03570, section V-A.
    """
    z = logits.double()
    own = labels.view(-1, 1, 1).expand(-1, z.shape[1], 1)
    others = z.scatter(2, own, -torch.inf)
    return (z.gather(2, own) - others.logsumexp(2, keepdim=True)).squeeze(2)
