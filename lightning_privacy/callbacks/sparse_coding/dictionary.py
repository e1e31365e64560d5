"""The dictionary: first atoms, unit norms, the local learning rule, and the largest eigenvalue that bounds a solver's step."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_weight

from lightning_privacy.callbacks.sparse_coding.functional import Geometry, synthesis

__all__ = ["HebbianSums", "hebbian_step", "hebbian_sums", "largest_eigenvalue", "normalise_atoms", "random_atoms"]


class HebbianSums(NamedTuple):
    """What a batch contributes to the learning rule; sums over batches and ranks add up.

    Args:
        correlation: Of the code with the residual, one patch an atom.
        activations: How often each atom was active.
    """

    correlation: Float[Tensor, "atoms channels kernel_rows kernel_columns"]
    activations: Float[Tensor, " atoms"]


def normalise_atoms(
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
) -> Float[Tensor, "atoms channels kernel_rows kernel_columns"]:
    """Return the atoms, each divided by its Euclidean norm; an atom of zeros stays one.

    Args:
        atoms: Phi.

    Example:
        >>> normalise_atoms(torch.tensor([[[[3.0, 4.0]]]])).flatten().tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    norms = atoms.flatten(1).norm(dim=1).clamp_min(torch.finfo(atoms.dtype).tiny)
    return atoms / norms[:, None, None, None]


def random_atoms(
    atoms: int, channels: int, kernel: tuple[int, int], generator: torch.Generator | None = None
) -> Float[Tensor, "atoms channels kernel_rows kernel_columns"]:
    """Return atoms of independent normal entries, scaled to unit norm: uniform on the sphere.

    Args:
        atoms: How many.
        channels: Of the signal.
        kernel: Rows and columns.
        generator: Where they are drawn; None for the global random state.

    Source:
        arXiv 2403.14772's released code draws from a normal truncated at two deviations, which is nearly the same.
    """
    return normalise_atoms(torch.randn(atoms, channels, *kernel, generator=generator))


def hebbian_sums(
    code: Float[Tensor, "batch atoms places_down places_across"],
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
) -> HebbianSums:
    """Return ``sum_(n,x) a_(n,f,x) patch(s - a * Phi, x)`` and the number of active places, both by atom f.

    Args:
        code: a.
        signal: s.
        atoms: Phi.
        geometry: Stride and padding.
    """
    error = signal - synthesis(code, atoms, (signal.shape[2], signal.shape[3]), geometry)
    correlation = conv2d_weight(
        error,
        list(atoms.shape),
        code,
        stride=geometry.stride,  # pyright: ignore[reportArgumentType]  # annotated int, documented to take pairs
        padding=geometry.padding,  # pyright: ignore[reportArgumentType]
    )
    return HebbianSums(correlation, (code != 0).to(code.dtype).sum((0, 2, 3)))


def hebbian_step(
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    sums: HebbianSums,
    eta: float,
    clip: float = float("inf"),
) -> Float[Tensor, "atoms channels kernel_rows kernel_columns"]:
    """Return the dictionary after one step of the local rule: towards the residual where an atom is active.

    ``Phi_f + clamp(eta dPhi_f / (1 + n_f), -clip, clip)``, scaled to unit norm, with ``dPhi_f`` and ``n_f`` the sums.

    Args:
        atoms: Phi.
        sums: Of the batch, of all ranks.
        eta: Rate, at least 0.
        clip: Largest change of an entry.

    Example:
        >>> phi = torch.tensor([[[[1.0, 0.0]]]])
        >>> sums = HebbianSums(torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([3.0]))
        >>> [round(x, 3) for x in hebbian_step(phi, sums, eta=0.75).flatten().tolist()]      # (1, 0.75) / 1.25
        [0.8, 0.6]

    Source:
        Rule of arXiv 2403.14772's code basis (lcapt), which the released sparse networks do not use.
    """
    change = eta * sums.correlation / (1 + sums.activations[:, None, None, None])
    return normalise_atoms(atoms + change.clamp(-clip, clip))


def largest_eigenvalue(
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    stride: tuple[int, int] = (1, 1),
    iterations: int = 30,  # chosen here: within a per cent for random dictionaries
    grid: int = 32,  # frequencies a side; chosen here, likewise
) -> Float[Tensor, ""]:
    """Return L, the largest eigenvalue of ``D^T D`` for signals of any size.

    A convolution is diagonal in frequency: at each of a grid of frequencies power iteration finds the largest singular
    value of a small matrix, and L is the square of the largest. Strides are undone by taking the phases of the signal
    as channels. Depends on the atoms alone, not on earlier calls, so that a resumed run takes the same steps.

    Args:
        atoms: Phi.
        stride: Of the places.
        iterations: Of the power method.
        grid: Frequencies a side; at least twice the kernel's side is used.

    Example:
        >>> round(largest_eigenvalue(torch.full((1, 1, 2, 2), 0.5)).item(), 3)      # a mean of four: largest at frequency 0
        4.0
    """
    (sy, sx), (n_atoms, channels, ky, kx) = stride, atoms.shape
    padded = F.pad(atoms.detach(), (0, -kx % sx, 0, -ky % sy))
    blocks = padded.view(n_atoms, channels, padded.shape[2] // sy, sy, padded.shape[3] // sx, sx)
    phases = blocks.permute(0, 1, 3, 5, 2, 4).reshape(n_atoms, channels * sy * sx, *blocks.shape[2:5:2])
    size = (max(grid, 2 * phases.shape[2]), max(grid, 2 * phases.shape[3]))
    symbol = torch.fft.rfft2(phases, s=size).permute(2, 3, 0, 1).flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(symbol), symbol.shape[2], 1, generator=generator)
    vector = start.to(symbol)
    for _ in range(iterations):
        vector = symbol.mH @ (symbol @ vector)
        vector = vector / vector.abs().square().sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(atoms.dtype).tiny)
    return (symbol @ vector).abs().square().sum(1).max()
