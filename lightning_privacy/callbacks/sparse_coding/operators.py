"""Analysis, synthesis and Gram operator of one dictionary and signal size, by the fastest way that the case allows."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.sparse_coding.functional import (
    Form,
    Geometry,
    analysis,
    lateral_gram,
    lateral_kernel,
    synthesis,
)

__all__ = ["Operators", "blocked_kernel"]

FEW_CHANNELS = 4
"""A CPU's convolution computes 16 output channels at the price of one; with this many or fewer, blocks pay off."""


def blocked_kernel(
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
) -> Float[Tensor, "phases atoms taps_down taps_across"]:
    """Return the kernel that synthesises 2 by 2 pixels at once, as four times the channels, for stride 1.

    Args:
        atoms: Phi.
    """
    n_atoms, channels, ky, kx = atoms.shape
    flipped = atoms.flip(2, 3).transpose(0, 1)
    kernel = atoms.new_zeros(channels, 2, 2, n_atoms, ky + 1, kx + 1)
    for y in range(2):
        for x in range(2):
            kernel[:, y, x, :, y : y + ky, x : x + kx] = flipped
    return kernel.reshape(4 * channels, n_atoms, ky + 1, kx + 1)


class Operators:
    """The linear maps of one sparse-coding problem.

    Without gradients on a CPU, tensors are laid out channels last, and codes of few channels are synthesised in blocks of
    four pixels; the values are the same up to rounding.

    Args:
        atoms: Phi, of unit norm.
        size: Rows and columns of the signals.
        geometry: Stride and padding.
        form: ``residual`` or ``lateral``.
    """

    def __init__(
        self,
        atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
        size: tuple[int, int],
        geometry: Geometry,
        form: Form,
    ) -> None:
        self.fast = not torch.is_grad_enabled() and atoms.device.type == "cpu"
        self.size, self.geometry, self.form = size, geometry, form
        self.atoms = self._layout(atoms)
        self._lateral = self._layout(lateral_kernel(atoms, geometry)) if form == "lateral" else None
        self._blocked: Tensor | None = None
        margins = [k - 1 - p for k, p in zip(atoms.shape[2:], geometry.padding, strict=True)]
        even = size[0] % 2 == 0 == size[1] % 2 and geometry.stride == (1, 1) and min(margins) >= 0
        if self.fast and even and atoms.shape[1] <= FEW_CHANNELS:
            self._blocked, self._margins = self._layout(blocked_kernel(atoms)), (margins[0], margins[1])

    def _layout(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if self.fast else tensor

    def encode(
        self, signal: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch atoms places_down places_across"]:
        """Return ``D^T s``."""
        return analysis(self._layout(signal), self.atoms, self.geometry)

    def decode(
        self, code: Float[Tensor, "batch atoms places_down places_across"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return ``D a``."""
        if self._blocked is None:
            return synthesis(code, self.atoms, self.size, self.geometry)
        return F.pixel_shuffle(F.conv2d(code, self._blocked, stride=2, padding=self._margins), 2)

    def gram(
        self, code: Float[Tensor, "batch atoms places_down places_across"]
    ) -> Float[Tensor, "batch atoms places_down places_across"]:
        """Return ``D^T D a``, in the lateral form ``G a``."""
        if self._lateral is not None:
            return lateral_gram(code, self._lateral)
        return self.encode(self.decode(code))

    def drive(
        self,
        signal: Float[Tensor, "batch channels rows columns"],
        b: Float[Tensor, "batch atoms places_down places_across"],
        code: Float[Tensor, "batch atoms places_down places_across"],
    ) -> Float[Tensor, "batch atoms places_down places_across"]:
        """Return ``D^T (s - D a)``, in the lateral form ``b - G a``: minus the gradient of the squared error.

        Args:
            signal: s.
            b: ``encode(signal)``.
            code: a.
        """
        if self._lateral is not None:
            return b - lateral_gram(code, self._lateral)
        return self.encode(signal - self.decode(code))
