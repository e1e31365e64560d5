"""The last linear layer of a network, and what it reads."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["find_head", "head_input"]


def find_head(network: nn.Module, classes: int) -> str | None:
    """Return the name of the last linear layer with one output a class; None where there is none.

    Args:
        network: Any network.
        classes: Number of classes.

    Example:
        >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), classes=3)
        '2'
    """
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    return linear[-1] if linear else None


def head_input(
    forward: Callable[[Tensor], Tensor], head: nn.Module, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch features"]:
    """Return what the last layer reads when pictures pass through a network.

    Args:
        forward: The whole network.
        head: Its last layer.
        images: Pictures.

    Raises:
        InputError: The layer's output is not what the network returns, so that it is not the last one.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> head_input(net, net[1], torch.ones(2, 1, 2, 2)).tolist()[0]
        [1.0, 1.0, 1.0, 1.0]
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    with head.register_forward_hook(note):
        logits = forward(images)
    # NaN is not equal to itself, and a network whose training failed still has a last layer.
    if len(seen) == 1 and seen[0][1].shape == logits.shape and seen[0][0].ndim == 2:
        features, output = seen[0]
        if output is logits or torch.equal(output.nan_to_num(), logits.nan_to_num()):
            return features
    raise InputError(
        f"The network's scores are not the output of its linear layer `{type(head).__name__}` alone (several heads, or "
        "something after it), so it has no embedding; override `embedding(batch)`."
    )
