"""Networks by name: our own, torchvision's, timm's, or a class by import path."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from lightning_privacy.core.import_path import import_object
from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.block_mlp import BlockMLP
from lightning_privacy.modules.networks.cifar_resnet import CifarResNet18
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet
from lightning_privacy.modules.networks.small_cnn import LeNet, SmallCNN
from lightning_privacy.modules.networks.split_cnn import SplitCNN
from lightning_privacy.modules.networks.thin_resnet import CifarResNet20, CifarResNet32

__all__ = ["STOCK", "build_network", "find_network"]

# torchvision and timm are imported where they are asked for: each takes a second.

STOCK: Mapping[str, type[nn.Module]] = {
    "block_mlp": BlockMLP,
    "cifar_resnet18": CifarResNet18,
    "cifar_resnet20": CifarResNet20,
    "cifar_resnet32": CifarResNet32,
    "leakage_lenet": LeakageLeNet,
    "lenet": LeNet,
    "small_cnn": SmallCNN,
    "split_cnn": SplitCNN,
}
"""Our own networks by name."""


def _torchvision_names() -> list[str]:
    import torchvision

    # Detection and segmentation networks are in sub-modules and return no class scores.
    return torchvision.models.list_models(module=torchvision.models)


def _timm() -> Any:
    if find_spec("timm") is None:
        raise InputError("Networks of timm need the package `timm`; run `pip install lightning-privacy[demo]`.")
    import timm

    return timm


def find_network(network: str) -> tuple[str, str]:
    """Return where a network comes from and its name there.

    Args:
        network: ``torchvision:NAME``, ``timm:NAME``, an import path, or a bare name, which is looked for among our own
            networks, then torchvision's, then timm's.

    Returns:
        ``stock``, ``torchvision``, ``timm`` or ``import``, and the name.

    Raises:
        InputError: There is no such network.

    Example:
        >>> find_network("lenet"), find_network("resnet18"), find_network("torch.nn.Sequential")
        (('stock', 'lenet'), ('torchvision', 'resnet18'), ('import', 'torch.nn.Sequential'))
    """
    source, colon, name = network.partition(":")
    if colon and source in ("torchvision", "timm"):
        known = _torchvision_names() if source == "torchvision" else _timm().list_models()
        if name in known or (source == "timm" and _timm().is_model(name)):
            return source, name
        raise InputError(f"{source} has no network {name!r}.{_guess(name, known)}")
    if network in STOCK:
        return "stock", network
    if network in (names := _torchvision_names()):
        return "torchvision", network
    if find_spec("timm") is not None and _timm().is_model(network):
        return "timm", network
    if "." in network:
        return "import", network
    raise InputError(
        f"There is no network {network!r}: it is none of ours ({', '.join(STOCK)}), nor torchvision's, nor timm's, nor "
        f"the import path of a class.{_guess(network, [*STOCK, *names])}"
    )


def _guess(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def build_network(
    source: str, name: str, classes: int, channels: int, image_size: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """Build a network with weights from torch's random state.

    Args:
        source: ``stock``, ``torchvision``, ``timm`` or ``import``.
        name: Its name there.
        classes: Number of classes; a class by import path gets it in its own arguments.
        channels: Channels of the pictures; likewise.
        image_size: Side of the pictures; passed to those of our networks that need it.
        arguments: Further arguments.

    Returns:
        The network, on torch's default device.

    Raises:
        InputError: It cannot be built of these arguments.

    Example:
        >>> net = build_network("stock", "small_cnn", 10, 1, 8, {"width": 4})
        >>> sum(p.numel() for p in net.parameters())
        666
    """
    make: Callable[..., Any]
    given: dict[str, Any] = {}
    if source == "stock":
        make, given = STOCK[name], {"classes": classes, "channels": channels}
        if "image_size" in inspect.signature(make).parameters:
            given["image_size"] = image_size
    elif source == "torchvision":
        from torchvision.models import get_model_builder

        if channels != 3:
            raise InputError(
                f"torchvision's `{name}` takes pictures of 3 channels, but channels is {channels}; take a network of "
                "timm's (timm:NAME adapts to any number) or repeat the channel."
            )
        make, given = get_model_builder(name), {"num_classes": classes}
    elif source == "timm":
        make, given = _timm().create_model, {"model_name": name, "num_classes": classes, "in_chans": channels}
    else:
        make = import_object(name)
        if not (isinstance(make, type) and issubclass(make, nn.Module)):
            raise InputError(f"`{name}` is not a class of networks (torch.nn.Module); give the import path of one.")
    try:
        return make(**given, **arguments)
    except OSError:  # timm's weights out of reach, which Hugging Face calls a ValueError too
        raise
    except (TypeError, ValueError) as error:
        needs = f" and {given}" if given else ""
        raise InputError(
            f"The network `{name}` cannot be built with network_args {dict(arguments)}{needs}: {error}. Correct "
            "`network_args`."
        ) from error
