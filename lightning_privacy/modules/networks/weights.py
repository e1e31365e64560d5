"""Weights to start from: torchvision's and timm's by name, or a safetensors file; never a pickle of the user's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.build import build_network
from lightning_privacy.modules.networks.head import find_head

__all__ = ["load_file_weights", "load_torchvision_weights", "pretrained_network"]

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def pretrained_network(
    source: str, name: str, pretrained: str, classes: int, channels: int, image_size: int, arguments: Mapping[str, Any]
) -> tuple[nn.Module, tuple[list[float], list[float]] | None]:
    """Build a network and load weights into it, by their name or from a file.

    A last layer for another number of classes keeps the weights it was built with.

    Args:
        source: Where the network comes from: ``stock``, ``torchvision``, ``timm`` or ``import``.
        name: Its name there.
        pretrained: A ``.safetensors`` file, or a name of torchvision's or timm's weights.
        classes: See `build_network`, as for the others.
        channels: Channels of the pictures.
        image_size: Side of the pictures.
        arguments: Further arguments.

    Returns:
        The network, and mean and standard deviation per channel of the pictures that its weights were trained with
        (None for a file).

    Raises:
        InputError: There are no such weights, they cannot be fetched, or they are not this network's.
    """
    if Path(pretrained).suffix.lower() in PICKLES:
        raise InputError(
            f"`pretrained` is {pretrained}, a pickle, which can run any program when it is opened; convert it with "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors') where you trust it."
        )
    from_file = pretrained.endswith(".safetensors")
    if not from_file and source == "timm":
        return _from_timm(name, pretrained, classes, channels, image_size, arguments)
    if not from_file and source != "torchvision":
        raise InputError(
            f"`pretrained` is {pretrained!r}, but `{name}` has no weights by name; give a .safetensors file of its "
            "weights."
        )
    network = build_network(source, name, classes, channels, image_size, arguments)
    head = find_head(network, classes)
    if from_file:
        load_file_weights(network, pretrained, head)
        return network, None
    return network, load_torchvision_weights(network, name, pretrained, head)


def _copy_into(network: nn.Module, weights: Mapping[str, Tensor], head: str | None, origin: str) -> None:
    """Copy weights in; every key must be used and every parameter filled, the last layer's excepted."""
    mine, given = network.state_dict(), dict(weights)
    last = {f"{head}.weight", f"{head}.bias"} if head else set()
    if any(key in mine and key in given and mine[key].shape != given[key].shape for key in last):
        given = {key: value for key, value in given.items() if key not in last}
    missing, unknown = sorted(set(mine) - set(given) - last), sorted(set(given) - set(mine))
    wrong = sorted(key for key in set(given) & set(mine) if mine[key].shape != given[key].shape)
    if missing or unknown or wrong:
        found = {"missing": missing, "unknown": unknown, "of another shape": wrong}
        listed = "; ".join(f"{what}: {', '.join(keys[:3])} ({len(keys)})" for what, keys in found.items() if keys)
        raise InputError(
            f"The weights of {origin} are not those of this network ({listed}); check `network`, `network_args` and "
            "`channels`."
        )
    network.load_state_dict(given, strict=False)


def load_file_weights(network: nn.Module, file: str, head: str | None = None) -> None:
    """Load a safetensors file; names may begin with ``network.``, as in a state dict of `ImageClassifier`.

    Args:
        network: Changed in place.
        file: The file.
        head: Name of the last linear layer, which may be for another number of classes.

    Raises:
        InputError: The file does not exist, is damaged or is another network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file():
        raise InputError(f"`pretrained` names the file {file}, which does not exist; correct the path.")
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); write it anew.") from error
    if weights and all(key.startswith("network.") for key in weights):
        weights = {key.removeprefix("network."): value for key, value in weights.items()}
    _copy_into(network, weights, head, file)


def _unreachable(what: str, name: str, error: Exception) -> InputError:
    return InputError(
        f"The weights {what} of `{name}` could not be fetched ({type(error).__name__}: {error}); connect to the "
        "network, put them into the cache beforehand, give a local .safetensors file, or leave `pretrained` out."
    )


def load_torchvision_weights(
    network: nn.Module, name: str, pretrained: str, head: str | None = None
) -> tuple[list[float], list[float]]:
    """Load weights that torchvision names, such as ``DEFAULT`` or ``IMAGENET1K_V2``, as tensors only.

    Args:
        network: Changed in place.
        name: Name of the network.
        pretrained: Name of the weights.
        head: Name of the last linear layer, which may be for another number of classes.

    Returns:
        Mean and standard deviation per channel of the pictures they were trained with.

    Raises:
        InputError: There are no such weights, or they cannot be fetched.
    """
    from torchvision.models import get_model_weights

    known: Any = get_model_weights(name)
    if pretrained not in known.__members__:
        raise InputError(
            f"torchvision has no weights {pretrained!r} of `{name}`; it has {', '.join(known.__members__)}."
        )
    chosen = known[pretrained]
    try:
        # Its files are pickles: the hash in their name is checked, and nothing but tensors is unpacked.
        weights = chosen.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise _unreachable(pretrained, name, error) from error
    _copy_into(network, weights, head, f"torchvision's {pretrained}")
    trained = chosen.transforms()
    return list(trained.mean), list(trained.std)


def _from_timm(
    name: str, pretrained: str, classes: int, channels: int, image_size: int, arguments: Mapping[str, Any]
) -> tuple[nn.Module, tuple[list[float], list[float]]]:
    """Build a network with weights that timm names by a tag such as ``in12k_ft_in1k``; ``DEFAULT`` is its own choice."""
    import timm

    base = name.partition(".")[0]
    full = name if pretrained == "DEFAULT" else f"{base}.{pretrained}"
    if not timm.is_model_pretrained(full):
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
        raise InputError(f"timm has no weights {pretrained!r} of `{base}`; it has {', '.join(tags) or 'none'}.")
    try:
        network: Any = build_network("timm", full, classes, channels, image_size, {**arguments, "pretrained": True})
    except (OSError, RuntimeError) as error:
        raise _unreachable(pretrained, name, error) from error
    trained = network.pretrained_cfg
    # timm adapts the first layer to other channels; one mean for all of them is then the nearest.
    mean, std = (list(trained[key]) if channels == 3 else [sum(trained[key]) / 3] for key in ("mean", "std"))
    return network, (mean, std)
