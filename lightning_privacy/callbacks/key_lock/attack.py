"""What attacks on shared updates need of a module with private scales and shifts."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.target import LockView, Secret
from lightning_privacy.callbacks.key_lock.functional import branches
from lightning_privacy.callbacks.key_lock.gates import layer_before
from lightning_privacy.callbacks.key_lock.layers import KeyLockedNorm, PrivateAffineNorm, SecretNorm, with_affine
from lightning_privacy.callbacks.key_lock.start import fresh_values, private_norms, random_key

__all__ = ["LeakageView", "leakage_view"]

_DRIFT = 0.1  # chosen here: how far an attacker expects training to have moved scale and shift from their start
Draw = Callable[[torch.Generator], Mapping[str, Tensor]]


@dataclass(frozen=True)
class LeakageView:
    """A module as an attacker may suppose it: an ordinary network, and which of its parameters are secret.

    Args:
        network: Computes what the module computes; in place of each private layer stands an ordinary one, whose parameters
            ``weight`` and ``bias`` have the values of the private scale and shift.
        secrets: What the client never shares, by name in ``network``.
        lock: For an attacker who knows the weights of all locks and lacks the keys; None where there is no lock.
        draw_secrets: Generator -> secrets as another client could have them, for an attacker who knows neither lock nor
            key; None where there are no secrets.
    """

    network: nn.Module
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    lock: LockView | None = None
    draw_secrets: Draw | None = None

    def draw_through_lock(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the module's own locks make of other keys, for an attacker who knows the locks.

        Args:
            generator: Of the keys.

        Raises:
            TypeError: there is no lock.
        """
        if self.lock is None:
            raise TypeError("The module has no lock; draw with `draw_secrets`.")
        return self.lock.derive(self.lock.draw_key(generator))


def leakage_view(module: nn.Module) -> LeakageView:
    """Return the network that a module with private scales and shifts amounts to, and what of it is secret.

    Args:
        module: Any module; neither kept nor changed.

    Returns:
        The view. Of a module without private layers: a copy, and no secrets.

    Example:
        >>> view = leakage_view(nn.Sequential(nn.Conv2d(1, 2, 3), KeyLockedNorm(nn.BatchNorm2d(2), key_length=8)))
        >>> sorted(view.secrets), type(view.network[1]).__name__, view.lock is not None
        (['1.bias', '1.weight'], 'BatchNorm2d', True)
    """
    network = copy.deepcopy(module)
    layers = private_norms(network)
    if not layers:
        return LeakageView(network)
    now = {name: tuple(v.detach() for v in layer.scale_and_shift()) for name, layer in layers.items()}
    secrets: dict[str, Secret] = {}
    for name, layer in layers.items():
        scale, shift = _names(name)
        shape, (above, no_negative_shift) = tuple(now[name][0].shape), _nonnegative(layer)
        # Only where a channel can be switched off does an exact zero in the gradient before it say so.
        off = isinstance(layer, KeyLockedNorm) and layer.secret.activation == "relu"
        secrets[scale] = Secret(shape, above, layer_before(network, name, now[name][0].numel()) if off else None)
        secrets[shift] = Secret(shape, no_negative_shift)
    locks = {name: layer for name, layer in layers.items() if isinstance(layer, KeyLockedNorm)}
    lock = LockView(partial(_derive, locks), partial(_draw_keys, locks)) if len(locks) == len(layers) else None
    draw = partial(_draw_fresh, layers)
    plain = {id(layer): with_affine(layer.norm, *now[name]) for name, layer in layers.items()}
    for parent in list(network.modules()):
        for attribute, child in list(parent._modules.items()):
            if id(child) in plain and not isinstance(parent, SecretNorm):
                setattr(parent, attribute, plain[id(child)])
    return LeakageView(plain.get(id(network), network), secrets, lock, draw)


def _names(layer: str) -> tuple[str, str]:
    prefix = f"{layer}." if layer else ""
    return f"{prefix}weight", f"{prefix}bias"


def _nonnegative(layer: SecretNorm) -> tuple[bool, bool]:
    """Return whether scale and shift are known not to be negative."""
    if not isinstance(layer, KeyLockedNorm):
        return False, False
    offsets = layer.secret.scale_offset, layer.secret.shift_offset
    signed = (branch == "identity" for branch in branches(layer.secret.activation))
    scale, shift = (not free and bool((o >= 0).all()) for free, o in zip(signed, offsets, strict=True))
    return scale, shift


def _derive(layers: Mapping[str, KeyLockedNorm], key: Tensor) -> dict[str, Tensor]:
    """Return every scale and shift for the keys of all locks, one behind the other."""
    keyed = [layer for layer in layers.values() if layer.previous is None]
    parts = key.split([layer.secret.key_length for layer in keyed])
    keys = {id(layer): part for layer, part in zip(keyed, parts, strict=True)}

    def both(layer: KeyLockedNorm) -> tuple[Tensor, Tensor]:
        values = {name: value.to(key) for name, value in layer.secret.secret_tensors().items()}
        before = None if layer.previous is None else both(layer.previous)
        return layer.secret.derive(values | ({"key": keys[id(layer)]} if before is None else {}), before)

    return {n: v for name, layer in layers.items() for n, v in zip(_names(name), both(layer), strict=True)}


def _draw_keys(layers: Mapping[str, KeyLockedNorm], generator: torch.Generator) -> Tensor:
    keyed = [layer.secret for layer in layers.values() if layer.previous is None]
    return torch.cat([random_key(s.key_length, s.distribution, generator) for s in keyed])


def _draw_fresh(layers: Mapping[str, SecretNorm], generator: torch.Generator) -> dict[str, Tensor]:
    """Return scales and shifts of a client that has begun with a lock and a key of its own."""
    found: dict[str, Tensor] = {}
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    for name, layer in layers.items():
        if isinstance(layer, KeyLockedNorm):
            secret = layer.secret
            if layer.previous is None:
                key = random_key(secret.key_length, secret.distribution, generator)
                keys = key, key
            else:
                keys = drawn[id(layer.previous)]
            tensors = {n: v.detach().cpu().float() for n, v in secret.secret_tensors().items()}
            values = tensors | fresh_values(secret, keys, generator, max(_DRIFT, secret.spread))
            drawn[id(layer)] = secret.derive(values, keys)
        elif isinstance(layer, PrivateAffineNorm):
            scale, shift = (v.detach().cpu() for v in layer.secret.begun())
            aside = _DRIFT * torch.randn(2, *scale.shape, generator=generator)
            drawn[id(layer)] = scale + aside[0], shift + aside[1]
        found.update(zip(_names(name), drawn[id(layer)], strict=True))
    return found
