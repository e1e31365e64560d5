"""Linear maps over the channels of a layer's output, whatever its shape."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["ChannelLinear", "channels_of"]

_SIZES = ("out_channels", "out_features", "num_features", "num_channels")
"""Attributes in which torch's convolutions, linear, batch- and group-normalisation layers keep their width."""


class ChannelLinear(nn.Linear):
    """A linear layer over channels: a 1 by 1 convolution on maps, an ordinary linear layer on vectors and on tokens.

    Channels are dimension 1 of (batch, channels, height, width) and the last of (batch, channels) and of
    (batch, tokens, channels).

    Args:
        in_features: Channels in.
        out_features: Channels out.

    Example:
        >>> import torch
        >>> ChannelLinear(8, 2)(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 2, 5, 5])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, input: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the mapped channels.

        Raises:
            InputError: the input has another number of channels, or of dimensions.
        """
        channels = input.shape[1 if input.ndim == 4 else -1]
        if input.ndim not in (2, 3, 4) or channels != self.in_features:
            raise InputError(
                f"A bottleneck for {self.in_features} channels got a tensor of shape {tuple(input.shape)}; set `features` to "
                "the channels of the layer's output: dimension 1 of (batch, channels, height, width), else the last."
            )
        if input.ndim == 4:
            return F.conv2d(input, self.weight[:, :, None, None], self.bias)
        return super().forward(input)


def channels_of(layer: nn.Module, name: str, features: int | None = None) -> int:
    """Return how many channels a layer's output has.

    Args:
        layer: The layer; where it says nothing, the last of its parts that does counts.
        name: What it is called, for the error.
        features: Known by the user; wins.

    Raises:
        InputError: neither the layer nor the user says it.

    Example:
        >>> channels_of(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), "stem")
        16
    """
    if features is not None:
        return features
    for part in reversed(list(layer.modules())):
        for attribute in _SIZES:
            found = getattr(part, attribute, None)
            if isinstance(found, int):
                return found
    raise InputError(
        f"The width of the output of `{name}` (a {type(layer).__name__}) is written nowhere in it; give `features`, the "
        "number of its channels."
    )
