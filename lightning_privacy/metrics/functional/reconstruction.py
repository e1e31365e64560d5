r"""How well pictures were reconstructed: per picture, and beside what needs no model and what is best.

Symbols: :math:`x` a victim's picture, :math:`\hat x` its reconstruction, both in [0, 1]. PSNR is
:math:`-10 \log_{10} MSE(x, \hat x)` in dB at a data range of 1. Numbers are averaged over pictures, never pictures over
numbers; two PSNRs are compared by their difference in dB, or as a ratio of MSEs, never as a ratio of dB.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["leak_share", "paired_similarity", "retrieved", "ssim_sigma", "victim_interval"]

_SIGMA, _SMALL_SIGMA = 1.5, 0.8  # Wang et al. 2004; chosen here for 8-pixel digits, whose 11-pixel window is all border
_SMALL_SIDE = 16


def ssim_sigma(side: int) -> float:
    """Return the standard deviation of SSIM's Gaussian window for pictures of a side, in pixels.

    Args:
        side: The shorter side: 16 and more take the usual 1.5 (a window of 11), 5 to 15 take 0.8 (a window of 7).

    Raises:
        InputError: the picture is smaller than the reflection at its border needs.

    Example:
        >>> ssim_sigma(64), ssim_sigma(8)
        (1.5, 0.8)
    """
    sigma = _SIGMA if side >= _SMALL_SIDE else _SMALL_SIGMA
    half = int(3.5 * sigma + 0.5)  # torchmetrics' half window
    if side <= half:
        raise InputError(
            f"SSIM needs pictures of at least {half + 1} pixels a side, but one has {side}; enlarge the pictures, or compare "
            "them by MSE and PSNR."
        )
    return sigma


def paired_similarity(
    pictures: Float[Tensor, "n channels height width"], originals: Float[Tensor, "m channels_b height_b width_b"]
) -> dict[str, Float[Tensor, " n"]]:
    """Return PSNR, SSIM and MSE of each pair.

    Args:
        pictures: Values in [0, 1].
        originals: The pictures they belong to, in the same order.

    Returns:
        ``psnr`` in dB at a data range of 1 (infinite for equal pictures), ``ssim`` (Wang et al. 2004, window as said by
        `ssim_sigma`) and ``mse``.

    Raises:
        InputError: shapes differ, values leave [0, 1], or pictures are too small.

    Example:
        >>> found = paired_similarity(torch.full((1, 1, 8, 8), 0.6), torch.full((1, 1, 8, 8), 0.5))
        >>> round(float(found["psnr"]), 3), round(float(found["mse"]), 3)
        (20.0, 0.01)
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
    sigma = ssim_sigma(min(a.shape[2:]))
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", sigma=sigma)
    if not isinstance(ssim, Tensor):
        raise InputError("torchmetrics returned an image beside the SSIM; pass return_full_image=False.")
    return {"psnr": psnr, "ssim": ssim.reshape(-1), "mse": (a - b).square().mean((1, 2, 3))}


def retrieved(
    reconstructions: Float[Tensor, "n channels height width"], victims: Float[Tensor, "n channels height width"]
) -> Bool[Tensor, " n"]:
    """Return whether each reconstruction is nearer to its own victim than to every other one, by squared error.

    Guessing is right for one in n. A tie with another victim is no retrieval: a picture that suits all names nobody.

    Args:
        reconstructions: Values in [0, 1].
        victims: The pictures they belong to, in the same order.

    Example:
        >>> victims = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        >>> retrieved(torch.full((2, 1, 4, 4), 0.4), victims).tolist()
        [True, False]
    """
    # In float64, where |a - b|^2 as a^2 - 2ab + b^2 keeps the order of near neighbours.
    a, b = reconstructions.flatten(1).double(), victims.flatten(1).double()
    distance = torch.cdist(a, b)
    own = distance.diagonal()
    distance = distance.clone().fill_diagonal_(float("inf"))
    return own < distance.min(1).values


def leak_share(
    found: Float[Tensor, " n"], floor: Float[Tensor, " n"], ceiling: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return where a mean PSNR stands between what needs no model (0) and what is best (1); it may lie outside.

    Args:
        found: PSNR of each victim's reconstruction.
        floor: PSNR of each victim's best guess without the model's output.
        ceiling: PSNR of each victim under the reference: the undefended model, or the autoencoder.

    Raises:
        InputError: the reference is no better than the floor, so that there is no scale.

    Example:
        >>> float(leak_share(torch.tensor([15.0]), torch.tensor([10.0]), torch.tensor([20.0])))
        0.5
    """
    span = ceiling.mean() - floor.mean()
    if not float(span) > 0:
        raise InputError(
            f"There is no scale for the leak: the reference reaches {float(ceiling.mean()):.2f} dB and the floor "
            f"{float(floor.mean()):.2f} dB. Train the attackers longer or on more pictures."
        )
    return (found.mean() - floor.mean()) / span


def victim_interval(
    columns: Sequence[Float[Tensor, " n"]],
    statistic: Callable[..., Tensor] = lambda x: x.mean(1),
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic over victims.

    Args:
        columns: Numbers of the same victims, in the same order.
        statistic: Function of one (resamples, n) matrix a column -> one number a resample; the mean by default.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
        level: Confidence in (0, 1).

    Returns:
        Both ends. They cover the victims that happened to be attacked, not another split or training seed.

    Raises:
        InputError: there are fewer than two victims, or columns of different lengths.

    Example:
        >>> low, high = victim_interval([torch.arange(100.0)])
        >>> 43 < low < 45, 54 < high < 56
        (True, True)
    """
    n = len(columns[0])
    if n < 2 or any(len(column) != n for column in columns):
        raise InputError(
            f"An interval over victims needs at least two of them and equally many numbers a column, but got "
            f"{[len(column) for column in columns]}."
        )
    index = torch.randint(n, (resamples, n), generator=seeded_generator(seed, "victims"))
    found = statistic(*(column.double()[index] for column in columns))
    low, high = found.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
