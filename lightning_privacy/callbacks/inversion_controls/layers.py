"""The layers that the controls put in: a frozen random convolution, and a narrow passage."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.inversion_controls.functional import unit_norm_filters
from lightning_privacy.core.channels import ChannelLinear
from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["FrozenRandomConv2d", "NarrowPassage", "first_convolutions"]


def first_convolutions(module: nn.Module, count: int) -> list[str]:
    """Return the names of the first two-dimensional convolutions of a module, in the order of its layers.

    Args:
        module: Whose layers.
        count: How many, at least 1.

    Raises:
        NoEffectError: it has fewer.

    Example:
        >>> first_convolutions(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)), 1)
        ['0']
    """
    found = [name for name, layer in module.named_modules() if name and isinstance(layer, nn.Conv2d)]
    if len(found) < count:
        raise NoEffectError(
            f"{type(module).__name__} has {len(found)} two-dimensional convolutions and the control asks for the first "
            f"{count}; lower `layers`."
        )
    return found[:count]


class FrozenRandomConv2d(nn.Conv2d):
    """A convolution of the same shape whose filters are random, of norm 1, without bias, and never trained.

    Filters are a buffer and no parameter, so that nothing that unfreezes parameters trains them.

    Args:
        like: The convolution whose place it takes.
        place: That layer's full name.

    Example:
        >>> layer = FrozenRandomConv2d(nn.Conv2d(3, 16, 5))
        >>> layer.weight.shape, list(layer.parameters())
        (torch.Size([16, 3, 5, 5]), [])
    """

    def __init__(self, like: nn.Conv2d, place: str = "") -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # pyright: ignore[reportArgumentType]  a tuple of two
            like.stride,  # pyright: ignore[reportArgumentType]
            like.padding,  # pyright: ignore[reportArgumentType]
            like.dilation,  # pyright: ignore[reportArgumentType]
            like.groups,
            bias=False,
            padding_mode=like.padding_mode,
        )
        self.place = place
        shape = self.weight.shape
        del self.weight
        # Normal numbers cut at two standard deviations, as a released sparse layer draws its dictionary.
        self.register_buffer("weight", unit_norm_filters(nn.init.trunc_normal_(torch.empty(shape))))


class NarrowPassage(nn.Module):
    """A layer whose output passes through fewer channels and back.

    ``narrow`` is what leaves the client, so that an attacker listens at ``<tap>.narrow``. ``expand`` belongs to the server;
    it is linear, and its output tells nothing that the narrow tensor does not.

    Args:
        inner: The layer.
        channels: Channels of its output.
        width: Channels between.
        tap: How the user named the layer.
        place: The layer's full name.

    Example:
        >>> passage = NarrowPassage(nn.Conv2d(3, 16, 3), 16, 2)
        >>> passage.narrow(passage.inner(torch.zeros(1, 3, 5, 5))).shape, passage(torch.zeros(1, 3, 5, 5)).shape
        (torch.Size([1, 2, 3, 3]), torch.Size([1, 16, 3, 3]))
    """

    def __init__(self, inner: nn.Module, channels: int, width: int, tap: str = "", place: str = "") -> None:
        super().__init__()
        if width >= channels:
            raise InputError(
                f"WidthMatchedBottleneck: `width` is {width}, and `{place}` has {channels} channels: that is no bottleneck. "
                "Lower `width`."
            )
        self.inner = inner
        self.narrow, self.expand = ChannelLinear(channels, width), ChannelLinear(width, channels)
        self.tap, self.place = tap, place

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "batch ..."]:
        """Return the output, through the narrow passage."""
        return self.expand(self.narrow(self.inner(*args, **kwargs)))
