r"""What a decoder minimises: :math:`MSE(x, \hat x) + w (1 - SSIM(x, \hat x))`, picture by picture."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["box_ssim", "picture_error", "picture_loss"]

_WINDOW = 7  # pixels; the uniform window of Wang et al. 2004, section III-B
_STRIDE = 2  # pixels between windows; chosen here: all of them cost as much as the network's own pass
_C1, _C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for a data range of 1


def picture_error(
    pictures: Float[Tensor, "n channels height width"], originals: Float[Tensor, "n channels height width"]
) -> Float[Tensor, " n"]:
    """Return the mean squared error of each picture.

    Example:
        >>> picture_error(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)).tolist()
        [0.25]
    """
    return (pictures - originals).square().mean((1, 2, 3))


def box_ssim(
    pictures: Float[Tensor, "n channels height width"], originals: Float[Tensor, "n channels height width"]
) -> Float[Tensor, " n"]:
    """Return the structural similarity of each pair under a uniform window, which is cheap to differentiate.

    The window has 7 pixels a side, or the largest odd number up to half of a smaller picture. Numbers that are reported
    use the usual Gaussian window instead.

    Args:
        pictures: Values in [0, 1].
        originals: What they should be.

    Example:
        >>> x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> round(float(box_ssim(x, x)), 3), bool(box_ssim(x, 1 - x) < 0)
        (1.0, True)

    Source:
        Wang et al., "Image quality assessment", IEEE TIP 2004, equation 13.
    """
    window = min(_WINDOW, max(1, (min(pictures.shape[2:]) // 2 - 1) | 1))
    n = len(pictures)
    stacked = torch.cat([pictures, originals, pictures.square(), originals.square(), pictures * originals])
    a, b, aa, bb, ab = F.avg_pool2d(stacked, window, stride=_STRIDE).split(n)
    same_mean = (2 * a * b + _C1) / (a.square() + b.square() + _C1)
    same_shape = (2 * (ab - a * b) + _C2) / ((aa - a.square()) + (bb - b.square()) + _C2)
    return (same_mean * same_shape).mean((1, 2, 3))


def picture_loss(
    pictures: Float[Tensor, "n channels height width"],
    originals: Float[Tensor, "n channels height width"],
    ssim_weight: float | int,
) -> Float[Tensor, " n"]:
    """Return MSE + w (1 - SSIM) of each picture.

    Args:
        pictures: Values in [0, 1].
        originals: What they should be.
        ssim_weight: w, at least 0; at 0 the similarity is not computed.
    """
    error = picture_error(pictures, originals)
    return error + ssim_weight * (1 - box_ssim(pictures, originals)) if ssim_weight else error
