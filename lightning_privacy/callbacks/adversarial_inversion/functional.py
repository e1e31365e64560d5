r"""The mathematics of adversarial inversion training, as pure functions.

Sources: ResSFL (Li et al., CVPR 2022, arXiv 2205.04007) and DeepObfuscator (Li et al., arXiv 1909.04126).

| symbol | here | meaning |
|---|---|---|
| ``x``, ``x_hat`` | ``pictures``, ``reconstructions`` | a batch in [0, 1], and the decoder's guess from the tap |
| ``e`` | `reconstruction_error` | error of each picture: MSE, or 1 - SSIM |
| ``c`` | ``ceiling`` | error beyond which a picture counts as hidden |
| ``w`` | ``strength`` | weight |

The decoder minimises ``mean e``; the model minimises ``L - w mean min(e, c)``.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.metrics.functional.reconstruction import ssim_sigma

__all__ = ["hidden_error", "reconstruction_error"]


def reconstruction_error(
    reconstructions: Float[Tensor, "batch channels height width"],
    pictures: Float[Tensor, "batch channels height width"],
    measure: Literal["mse", "ssim"] = "mse",
) -> Float[Tensor, " batch"]:
    """Return the error of each picture, differentiable in the reconstructions.

    Args:
        reconstructions: Values in [0, 1].
        pictures: Values in [0, 1].
        measure: ``mse``, or ``ssim`` for ``1 - SSIM`` (0 for equal pictures, at most 2).

    Raises:
        InputError: the pictures are too small for SSIM.

    Example:
        >>> import torch
        >>> x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
        >>> round(reconstruction_error(x + 0.1, x).item(), 4)
        0.01
        >>> round(reconstruction_error(x, x, "ssim").item(), 4)
        0.0
    """
    if measure == "mse":
        return (reconstructions - pictures).square().mean((1, 2, 3))
    from torchmetrics.functional.image import structural_similarity_index_measure

    sigma = ssim_sigma(min(pictures.shape[2:]))
    found = structural_similarity_index_measure(
        reconstructions, pictures, data_range=1.0, reduction="none", sigma=sigma
    )
    return 1 - (found if isinstance(found, Tensor) else found[0]).reshape(-1)


def hidden_error(error: Float[Tensor, " batch"], ceiling: float | int) -> Float[Tensor, ""]:
    """Return ``mean min(e, c)``: a picture that is hidden well enough pulls no more.

    The ceiling is each picture's own, so that the sum stays a mean of terms of one record each.

    Args:
        error: Of each picture.
        ceiling: In the error's unit, above 0; infinite for none.

    Example:
        >>> import torch
        >>> round(hidden_error(torch.tensor([0.01, 0.09]), 0.05).item(), 4)
        0.03
    """
    return error.clamp(max=ceiling).mean()
