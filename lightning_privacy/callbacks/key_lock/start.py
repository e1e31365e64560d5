"""How locks begin: what they are filled with, from a master key or from a key, and how keys are changed."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lightning_privacy.callbacks.key_lock.functional import Distribution, derived_key, key_gain, refit, softplus_inverse
from lightning_privacy.callbacks.key_lock.layers import KeyLockedNorm, SecretLock, SecretNorm
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.hkdf import hkdf_sha256

__all__ = [
    "fresh_values",
    "keys_for",
    "lengths_of",
    "locks_of",
    "private_norms",
    "random_key",
    "start_locks",
    "turn_keys",
]

Keys = tuple[Tensor, Tensor]


def locks_of(module: nn.Module) -> dict[str, KeyLockedNorm]:
    """Return the key-locked layers of a module by name.

    Args:
        module: Any module.
    """
    return {name: part for name, part in module.named_modules() if isinstance(part, KeyLockedNorm)}


def lengths_of(module: nn.Module) -> dict[str, int]:
    """Return the length of the key of each lock that has one, by the layer's name.

    Args:
        module: Any module.
    """
    return {n: layer.secret.key_length for n, layer in locks_of(module).items() if layer.previous is None}


def private_norms(module: nn.Module) -> dict[str, SecretNorm]:
    """Return all layers of a module with a private scale and shift, locked by a key or not, by name.

    Args:
        module: Any module.
    """
    return {name: part for name, part in module.named_modules() if isinstance(part, SecretNorm)}


def keys_for(
    material: bytes | Tensor, site: str, sizes: Mapping[str, int], distribution: Distribution
) -> dict[str, Tensor]:
    """Return the key of every layer that has one.

    Args:
        material: A master key, from which a key of its own is derived for each layer; or the key of the only layer.
        site: What the keys are for, such as the model; keys of other sites are independent.
        sizes: Length of each layer's key, by the layer's name.
        distribution: Of derived keys.

    Raises:
        InputError: there is one key for several layers, or it has another length.

    Example:
        >>> keys = keys_for(bytes(range(32)), "alice", {"conv1": 4, "conv2": 4}, "normal")
        >>> sorted(keys), bool((keys["conv1"] == keys["conv2"]).any())
        (['conv1', 'conv2'], False)
    """
    if isinstance(material, bytes):
        return {name: derived_key(material, f"{site}/{name}", size, distribution) for name, size in sizes.items()}
    if len(sizes) != 1:
        raise InputError(
            f"One key is given for {len(sizes)} locks. Give a master key (`KeyVault.put_master`), from which each gets its "
            "own, or chain the locks."
        )
    ((name, size),) = sizes.items()
    if tuple(material.shape) != (size,) or not material.is_floating_point():
        raise InputError(
            f"The key for `{name}` has shape {tuple(material.shape)} and type {material.dtype}, and {size} real numbers are "
            "needed. Set `key_length`, or give a master key."
        )
    return {name: material}


def random_key(size: int, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Return a key from a generator: for attackers, whose keys need not be unpredictable.

    Args:
        size: d.
        distribution: Of the entries.
        generator: Of the key.
    """
    draw = torch.rand if distribution == "uniform" else torch.randn
    return draw(size, generator=generator)


def fresh_values(secret: SecretLock, keys: Keys, generator: torch.Generator, spread: float | int) -> dict[str, Tensor]:
    r"""Return weights and biases of a new lock.

    With ``softplus`` the layer starts as it was without a lock: :math:`\gamma` and :math:`\beta` are its own scale and
    shift, 1 and 0 unless it was trained before. With ``relu`` and ``sigmoid`` weights and biases are those of a new linear
    layer, as in the released code, and the layer's own scale and shift are given up.

    Args:
        secret: The lock, of which shapes, activation and offsets are used.
        keys: k_g and k_b.
        generator: Of the weights.
        spread: Standard deviation by which a softplus lock's start departs from the layer's own values.
    """
    channels, d = secret.scale_weight.shape
    if secret.activation != "softplus":
        bound = 1 / math.sqrt(d)  # of torch.nn.Linear
        drawn = [
            torch.rand(shape, generator=generator) * 2 * bound - bound for shape in [(channels, d), (channels,)] * 2
        ]
        return dict(zip(("scale_weight", "scale_bias", "shift_weight", "shift_bias"), drawn, strict=True))
    weights = torch.randn(2, channels, d, generator=generator)
    aside = spread * torch.randn(2, channels, generator=generator)
    gain = key_gain("softplus", d)
    entering = [
        weight @ (key.detach().cpu().float().flatten() * gain) for weight, key in zip(weights, keys, strict=True)
    ]
    return {
        "scale_weight": weights[0],
        "scale_bias": softplus_inverse(torch.ones(())) + aside[0] - entering[0],
        "shift_weight": weights[1],
        "shift_bias": aside[1] - entering[1],
    }


def start_locks(
    module: nn.Module,
    material: bytes | Tensor,
    site: str = "key_lock",
    distribution: Distribution = "normal",
    spread: float | int = 0.0,
    lock_seed: int | None = None,
) -> None:
    """Fill the locked layers of a module that are still locked, and unlock them.

    Args:
        module: With `KeyLockedNorm` layers.
        material: See `keys_for`.
        site: See `keys_for`.
        distribution: Of derived keys.
        spread: See `fresh_values`.
        lock_seed: Makes the locks' first weights the same for all who know the seed, as where a server sends them out; None
            derives them from the key, so that they are as secret.
    """
    waiting = {name: layer for name, layer in locks_of(module).items() if layer.is_locked}
    sizes = {name: layer.secret.key_length for name, layer in waiting.items() if layer.previous is None}
    keys = keys_for(material, site, sizes, distribution) if sizes else {}
    with torch.no_grad():
        for name, layer in waiting.items():
            secret = layer.secret
            if layer.previous is None:
                own = {"key": keys[name]}
                entering = keys[name], keys[name]
            else:
                own, entering = {}, layer.previous.scale_and_shift()
            if lock_seed is None:
                seed = int.from_bytes(hkdf_sha256(_bytes(material), 8, info=f"lock of {site}/{name}".encode())) >> 1
                generator = torch.Generator().manual_seed(seed)
            else:
                generator = seeded_generator(lock_seed, "lock", name)
            values = own | fresh_values(secret, entering, generator, spread)
            kept = {k: v for k, v in secret.secret_tensors().items() if k.endswith("offset")}
            secret.fill(values | kept)


def turn_keys(module: nn.Module, keys: Mapping[str, Tensor], keep_function: bool) -> None:
    """Put new keys into locks.

    Args:
        module: With `KeyLockedNorm` layers.
        keys: By the layers' names.
        keep_function: Whether biases are fitted so that scale and shift stay as they are.

    Raises:
        InputError: a layer is locked: there is no old key to replace.
    """
    layers = locks_of(module)
    if closed := [name for name in keys if layers[name].is_locked]:
        raise InputError(f"The layers {closed} are locked, so that their keys cannot be changed. Unlock them first.")
    with torch.no_grad():
        for name, key in keys.items():
            secret = layers[name].secret
            old = secret.get_buffer("key")
            new, gain = key.to(old), key_gain(secret.activation, secret.key_length)
            if keep_function:
                for weight, bias in (
                    (secret.scale_weight, secret.scale_bias),
                    (secret.shift_weight, secret.shift_bias),
                ):
                    bias.copy_(refit(bias, weight, old * gain, new * gain))
            old.copy_(new)


def _bytes(material: bytes | Tensor) -> bytes:
    if isinstance(material, bytes):
        return material
    return np.ascontiguousarray(material.detach().cpu().numpy()).tobytes()
