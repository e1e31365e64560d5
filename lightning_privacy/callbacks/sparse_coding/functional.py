"""The mathematics of convolutional sparse coding: objective, operators, thresholds and optimality, as pure functions.

A signal ``s`` (a picture, or the output of an earlier layer) is written as ``a * Phi``: a sum of small atoms, the rows
of the dictionary ``Phi``, placed where the code ``a`` is not zero. In matrix form ``D a`` with ``D`` the synthesis.

    symbol   here        meaning
    s        signal      batch x channels x rows x columns
    a        code        batch x atoms x places, sparse
    Phi      atoms       atoms x channels x kernel x kernel, each of unit norm
    D        synthesis   a -> a * Phi, a transposed convolution
    D^T      analysis    s -> s (conv) Phi, a convolution
    G        gram        D^T D

Source: Rozell et al., Neural Computation 20, 2008; Dibbo et al., arXiv 2403.14772.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Form",
    "Geometry",
    "Transfer",
    "active_fraction",
    "analysis",
    "energy",
    "kkt_residual",
    "lateral_gram",
    "lateral_kernel",
    "relative_residual",
    "standardise",
    "synthesis",
    "threshold",
]

Form = Literal["residual", "lateral"]
"""``residual`` applies ``D^T D`` as two convolutions; ``lateral`` as one, with the correlations between atoms."""
Transfer = Literal["soft", "hard"]


@dataclass(frozen=True)
class Geometry:
    """Where atoms may lie: as for a convolution.

    Args:
        stride: Steps between places, rows and columns.
        padding: Zeros around the signal, rows and columns.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (2, 2)


def analysis(
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return ``D^T s``, the input drive b: how well each atom fits at each place.

    Args:
        signal: s.
        atoms: Phi.
        geometry: Stride and padding.

    Example:
        >>> s, phi = torch.ones(1, 1, 4, 4), torch.full((1, 1, 3, 3), 1 / 3)
        >>> round(analysis(s, phi, Geometry(padding=(1, 1)))[0, 0, 1, 1].item(), 5)
        3.0
    """
    return F.conv2d(signal, atoms, stride=geometry.stride, padding=geometry.padding)


def synthesis(
    code: Float[Tensor, "batch atoms places_down places_across"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    size: tuple[int, int],
    geometry: Geometry,
) -> Float[Tensor, "batch channels rows columns"]:
    """Return ``D a``, the reconstruction; it is the adjoint of `analysis` for signals of this size.

    Args:
        code: a.
        atoms: Phi.
        size: Rows and columns of the signal, which a strided code alone does not determine.
        geometry: Stride and padding.

    Example:
        >>> a, phi = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 3, 3), 1 / 3)
        >>> a[0, 0, 1, 1] = 6.0
        >>> synthesis(a, phi, (4, 4), Geometry(padding=(1, 1)))[0, 0, 0, 0].item()
        2.0
    """
    extra = [
        want - ((places - 1) * stride - 2 * padding + kernel)
        for want, places, stride, padding, kernel in zip(
            size, code.shape[2:], geometry.stride, geometry.padding, atoms.shape[2:], strict=True
        )
    ]
    return F.conv_transpose2d(
        code, atoms, stride=geometry.stride, padding=geometry.padding, output_padding=(extra[0], extra[1])
    )


def lateral_kernel(
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"], geometry: Geometry
) -> Float[Tensor, "atoms atoms taps_down taps_across"]:
    """Return the correlation of every atom with every other at every distance: ``Phi (conv) Phi``, centre included.

    Args:
        atoms: Phi.
        geometry: Its stride thins out the distances.

    Example:
        >>> phi = torch.tensor([[[[0.6, 0.8]]]])
        >>> [round(x, 2) for x in lateral_kernel(phi, Geometry(padding=(0, 0))).flatten().tolist()]
        [0.48, 1.0, 0.48]
    """
    reach = [(kernel - 1) // stride * stride for kernel, stride in zip(atoms.shape[2:], geometry.stride, strict=True)]
    return F.conv2d(atoms, atoms, stride=geometry.stride, padding=(reach[0], reach[1]))


def lateral_gram(
    code: Float[Tensor, "batch atoms places_down places_across"],
    kernel: Float[Tensor, "atoms atoms taps_down taps_across"],
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return ``a (conv) (Phi (conv) Phi)``.

    Atoms that stick out over the border count whole, so that this equals ``D^T D a`` in the interior alone: the lateral
    form also asks the code to reconstruct the zeros around the signal.

    Args:
        code: a.
        kernel: From `lateral_kernel`.
    """
    return F.conv2d(code, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))


def threshold(
    u: Float[Tensor, "batch atoms places_down places_across"],
    lam: float,
    *,
    nonneg: bool = True,
    transfer: Transfer = "soft",
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return ``T_lambda(u)``: the code of a membrane potential u.

    Args:
        u: Potential.
        lam: lambda, at least 0.
        nonneg: Whether codes may not be negative.
        transfer: ``soft`` takes lambda off what exceeds it, ``hard`` leaves that as it is.

    Example:
        >>> u = torch.tensor([[[[-2.0, 0.3, 2.0]]]])
        >>> threshold(u, 0.5).flatten().tolist(), threshold(u, 0.5, nonneg=False, transfer="hard").flatten().tolist()
        ([0.0, 0.0, 1.5], [-2.0, 0.0, 2.0])
    """
    if transfer == "hard":
        return F.threshold(u, lam, 0.0) if nonneg else F.hardshrink(u, lam)
    return F.relu(u - lam) if nonneg else F.softshrink(u, lam)


def standardise(
    signal: Float[Tensor, "batch channels rows columns"],
    eps: float = 1e-8,  # chosen here: rounding errors of a constant picture in [0, 1] must not be blown up to unit variance
) -> Float[Tensor, "batch channels rows columns"]:
    """Return each signal with mean 0 and variance 1 over all of its values.

    Args:
        signal: s.
        eps: Added to the variance.

    Example:
        >>> standardise(torch.tensor([[[[1.0, 3.0]]]])).flatten().tolist()
        [-1.0, 1.0]
    """
    centred = signal - signal.mean((1, 2, 3), keepdim=True)
    return centred * (centred.square().mean((1, 2, 3), keepdim=True) + eps).rsqrt()


def energy(
    code: Float[Tensor, "batch atoms places_down places_across"],
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    lam: float,
    geometry: Geometry,
) -> Float[Tensor, " batch"]:
    """Return the objective ``1/2 ||s - a * Phi||^2 + lambda ||a||_1`` of each signal.

    Args:
        code: a.
        signal: s.
        atoms: Phi.
        lam: lambda.
        geometry: Stride and padding.

    Example:
        >>> s, phi = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
        >>> energy(s - 0.5, s, phi, 0.5, Geometry(padding=(0, 0))).item()    # 1/2 * 0.25 + 0.5 * 1.5
        0.875
    """
    error = signal - synthesis(code, atoms, (signal.shape[2], signal.shape[3]), geometry)
    return error.square().sum((1, 2, 3)) / 2 + lam * code.abs().sum((1, 2, 3))


def kkt_residual(
    code: Float[Tensor, "batch atoms places_down places_across"],
    drive: Float[Tensor, "batch atoms places_down places_across"],
    lam: float,
    *,
    nonneg: bool = True,
) -> Float[Tensor, " batch"]:
    """Return how far each code is from optimal: the largest violation of the LASSO's optimality conditions.

    With the drive ``g = D^T (s - D a)``: ``g = lambda sign(a)`` where a is not zero, and ``|g| <= lambda`` (``g <= lambda``
    for non-negative codes) where it is.

    Args:
        code: a.
        drive: g; in the lateral form ``b - G a``.
        lam: lambda.
        nonneg: Whether codes may not be negative.

    Returns:
        A number at least 0, in units of lambda's; 0 at the optimum.

    Example:
        >>> a, g = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.5, 0.7]]]])
        >>> round(kkt_residual(a, g, 0.5).item(), 3)
        0.2
    """
    on = (drive - lam * code.sign()).abs()
    off = ((drive if nonneg else drive.abs()) - lam).clamp_min(0)
    return torch.where(code != 0, on, off).amax((1, 2, 3))


def relative_residual(
    code: Float[Tensor, "batch atoms places_down places_across"],
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
) -> Float[Tensor, " batch"]:
    """Return ``||s - a * Phi|| / ||s||`` of each signal: 0 where the code tells all, 1 where it tells nothing.

    Args:
        code: a.
        signal: s.
        atoms: Phi.
        geometry: Stride and padding.
    """
    error = signal - synthesis(code, atoms, (signal.shape[2], signal.shape[3]), geometry)
    tiny = torch.finfo(signal.dtype).tiny
    return error.flatten(1).norm(dim=1) / signal.flatten(1).norm(dim=1).clamp_min(tiny)


def active_fraction(code: Float[Tensor, "batch atoms places_down places_across"]) -> Float[Tensor, " batch"]:
    """Return the share of each code that is not zero.

    Args:
        code: a.

    Example:
        >>> active_fraction(torch.tensor([[[[0.0, 2.0, 0.0, 0.0]]]])).item()
        0.25
    """
    return (code != 0).to(code.dtype).mean((1, 2, 3))
