"""The prediction entropy that knows the true class, on a logarithmic scale that does not saturate."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["log_modified_entropy"]

_LINEAR = 30.0  # beyond it log(1 + exp(-x)) is exp(-x) to the last digit of float64


def _log_softplus(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return log(log(1 + exp(x))), which is x where exp(x) is tiny."""
    return torch.where(x < -_LINEAR, x, F.softplus(x.clamp_min(-_LINEAR)).log())


def log_modified_entropy(
    logits: Float[Tensor, "records queries classes"], labels: Int[Tensor, " records"]
) -> Float[Tensor, "records queries"]:
    r"""Return log Mentr, where Mentr = -(1 - p_y) log p_y - \sum_{i \ne y} p_i log(1 - p_i).

    Mentr is zero where the true class y has all the probability and grows both with doubt and with confident error,
    which the plain entropy mistakes for certainty. Every factor is formed as a logarithm of differences of logits in
    float64, so that two records whose p_y is one to the last digit still differ.

    Args:
        logits: Class scores; at least two classes.
        labels: The true class of each record.

    Example:
        >>> even = log_modified_entropy(torch.zeros(1, 1, 2), torch.tensor([0]))
        >>> round(float(even.exp()), 4)  # log 2
        0.6931

    Source:
        arXiv 2003.10595 (Mentr).
    """
    z = logits.double()
    log_p = z.log_softmax(2)
    # phi_i = log(p_i / (1 - p_i)). Only the largest probability can be so near one that 1 - p loses its digits.
    top = z.argmax(2, keepdim=True)
    without_top = z.scatter(2, top, -torch.inf).logsumexp(2, keepdim=True)
    below_half = log_p - torch.log1p(-log_p.exp())
    phi = below_half.scatter(2, top, z.gather(2, top) - without_top)
    own = labels.view(-1, 1, 1).expand(-1, z.shape[1], 1)
    own_phi = phi.gather(2, own)
    # log(1 - p_y) = -softplus(phi_y) and log(-log p_y) = log softplus(-phi_y); for i != y the two change places.
    own_term = -F.softplus(own_phi) + _log_softplus(-own_phi)
    terms = (log_p + _log_softplus(phi)).scatter(2, own, own_term)
    return terms.logsumexp(2)
