"""Similarity of pictures that come in pairs, such as a reconstruction and its original."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["paired_similarity"]


def paired_similarity(
    pictures: Float[Tensor, "n 3 height width"], originals: Float[Tensor, "m 3 height_b width_b"]
) -> dict[str, Float[Tensor, " n"]]:
    """Return PSNR, SSIM and MSE of each pair; average them afterwards, never the pictures.

    Args:
        pictures: Values in [0, 1].
        originals: The pictures they belong to, in the same order.

    Returns:
        ``psnr`` in dB at a data range of 1 (infinite for equal pictures), ``ssim`` (Wang et al. 2004:
        Gaussian window of 11 pixels, sigma 1.5) and ``mse``.

    Raises:
        InputError: shapes differ, or values leave [0, 1].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    if pictures.shape != originals.shape:
        raise InputError(
            f"Pairs need equal shapes, but pictures are {tuple(pictures.shape)} and originals {tuple(originals.shape)}."
        )
    for name, side in (("pictures", pictures), ("originals", originals)):
        if float(side.min()) < 0 or float(side.max()) > 1:
            raise InputError(f"The {name} of a paired comparison must lie in [0, 1]; clip or rescale them first.")
    a, b = pictures.float(), originals.float()
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    if not isinstance(ssim, Tensor):
        raise InputError("torchmetrics returned an image beside the SSIM; pass return_full_image=False.")
    return {"psnr": psnr, "ssim": ssim.reshape(-1), "mse": (a - b).square().mean((1, 2, 3))}
