"""Which layer feeds a normalisation layer, told by names and order alone."""

import re

from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["layer_before"]


def layer_before(network: nn.Module, name: str, channels: int) -> str | None:
    """Return the weight of the layer whose output a normalisation layer reads, or None where that is not plain.

    In a ``Sequential`` it is the element before. Elsewhere it is the only sibling in question that was registered before,
    or of several the one with the same number at the end of its name (``conv2`` before ``bn2``). Attacks hold a scale at
    zero where this weight gets no gradient, so that no answer is better than a wrong one.

    Args:
        network: The network.
        name: Of the normalisation layer in it.
        channels: Of the layer.

    Example:
        >>> layer_before(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "1", 4)
        '0.weight'
    """
    parent, _, own = name.rpartition(".")
    if own == "":
        return None
    family = network.get_submodule(parent)
    siblings = list(family.named_children())
    place = [n for n, _ in siblings].index(own)
    before = siblings[:place][-1:] if isinstance(family, nn.Sequential) else siblings[:place]
    fitting = [n for n, part in before if _outputs(part) == channels]
    if len(fitting) > 1:
        fitting = [n for n in fitting if _number(n) == _number(own) != ""]
    if len(fitting) != 1:
        return None
    return ".".join(part for part in (parent, fitting[0], "weight") if part)


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _ConvNd) and not layer.transposed else None


def _number(name: str) -> str:
    found = re.search(r"\d+$", name)
    return found.group() if found else ""
