"""Convolutions and pools of stacked models on a CPU: the channels of all models side by side in every pixel."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ChannelsTogether"]

# Each treats every channel by itself, so that the channels of all models are pooled as those of one.
POOLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)


class ChannelsTogether(TorchFunctionMode):
    """Compute what ``torch.func.vmap`` makes of ``conv2d`` and two-dimensional pools, faster on a CPU.

    ``vmap`` pools with the models among the records, after a copy to a layout in which ``max_pool2d`` takes ten times as
    long, and adds the bias of a convolution in a pass of its own. Here the models are among the channels of one
    ``channels_last`` tensor, which goes from layer to layer as it is. Results agree up to rounding.

    Example:
        >>> def one(weight, bias, images):
        ...     return F.max_pool2d(F.conv2d(images, weight, bias), 2).sum()
        >>> stacks = torch.ones(2, 4, 1, 3, 3), torch.zeros(2, 4), torch.ones(2, 5, 1, 8, 8)
        >>> with ChannelsTogether():
        ...     torch.func.vmap(one)(*stacks)
        tensor([1620., 1620.])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over convolutions and pools of batches of pictures; do everything else as it is."""
        named = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            if func is torch.conv2d:
                return _conv2d(*args, **named)
            if func in POOLS:
                return _Stacked.apply(lambda models, images: func(images, *args[1:], **named), (1,), args[0])
        return func(*args, **named)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    def run(models: int, images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, weight, bias, stride, padding, dilation, models * groups)

    return _Stacked.apply(run, (1, 0, 0), input, weight, *([] if bias is None else [bias]))


class _Stacked(torch.autograd.Function):
    """An operation on the tensors of one model, or of several one after the other along an axis of each tensor."""

    @staticmethod
    def forward(run: Callable[..., Tensor], axes: Sequence[int], *tensors: Tensor) -> Tensor:
        return run(1, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        # Only for tensors that all models share; `vmap` below is differentiated by itself.
        pull = torch.func.vjp(partial(ctx.run, 1), *ctx.saved_tensors)[1]
        return None, None, *pull(*gradients)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        models, (run, axes, *tensors), joined = info.batch_size, args, []
        for tensor, dim, axis in zip(tensors, in_dims[2:], axes, strict=False):
            stack = tensor.expand(models, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            joined.append(stack.movedim(0, axis).flatten(axis, axis + 1))
        return run(models, *joined).unflatten(1, (models, -1)), 1
