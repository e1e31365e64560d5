"""Normalisation layers whose scale and shift stay with their owner: wrappers around the ordinary ones."""

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from lightning_privacy.callbacks.key_lock.functional import Activation, Distribution, affine, branches, key_gain, lock
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_module import SecretModule

__all__ = ["NORMS", "KeyLockedNorm", "PrivateAffineNorm", "SecretAffine", "SecretLock", "SecretNorm"]

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""What can be wrapped: batch, instance, group and layer normalisation of any dimension."""

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class SecretAffine(SecretModule):
    """A scale and a shift that stay with their owner, without any key.

    Args:
        scale: What the scale starts at.
        shift: What the shift starts at.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())
        # Where training began is known to whoever knew the layer before; attackers are given it.
        self.register_buffer("scale_begun", scale.clone())
        self.register_buffer("shift_begun", shift.clone())

    def begun(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift before training."""
        return self.get_buffer("scale_begun"), self.get_buffer("shift_begun")

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift."""
        return self.scale, self.shift

    def locked_value(self, name: str, secret: Tensor) -> Tensor:
        """Return standard normal numbers."""
        return _random(self, name, secret)


class SecretLock(SecretModule):
    """A lock of two branches, and the key that opens it where no other lock stands before it.

    Args:
        shape: Of scale and shift.
        key_length: d, entries of the key, or of what the lock before gives.
        activation: See `functional.branches`.
        distribution: How keys are drawn; for attackers, who draw their own.
        spread: How far apart locks start; likewise.
        keyed: Whether the key lies here; otherwise keys come from the lock before.
    """

    key: Tensor | None
    scale_offset: Tensor
    shift_offset: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        key_length: int,
        activation: Activation,
        distribution: Distribution = "normal",
        spread: float | int = 0.0,
        keyed: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.key_length, self.spread = shape, key_length, spread
        self.activation: Activation = activation
        self.distribution: Distribution = distribution
        channels = math.prod(shape)
        self.scale_weight = nn.Parameter(torch.randn(channels, key_length))
        self.scale_bias = nn.Parameter(torch.zeros(channels))
        self.shift_weight = nn.Parameter(torch.randn(channels, key_length))
        self.shift_bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("key", torch.zeros(key_length) if keyed else None)
        # What the layer's own scale was beyond 1, and its own shift: the lock starts from them whatever their sign.
        self.register_buffer("scale_offset", torch.zeros(channels))
        self.register_buffer("shift_offset", torch.zeros(channels))

    def forward(self, keys: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return scale and shift.

        Args:
            keys: k_g and k_b, where they come from the lock before.
        """
        here = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        # A lock in half precision would round what makes two keys differ.
        with torch.autocast(self.scale_weight.device.type, enabled=False):
            return self.derive(here, keys)

    def derive(self, values: Mapping[str, Tensor], keys: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return scale and shift under given values of this lock's tensors; differentiable in all of them.

        Args:
            values: Every tensor by name, the key where none comes from before.
            keys: k_g and k_b from the lock before.

        Raises:
            InputError: there is no key at all.
        """
        k_g, k_b = keys if keys is not None else (values.get("key"), values.get("key"))
        if k_g is None or k_b is None:
            raise InputError("This lock is opened by the one before it, which is not given; run the whole model.")
        phi, psi = branches(self.activation)
        gain = key_gain(self.activation, self.key_length)
        scale = lock(k_g.flatten() * gain, values["scale_weight"], values["scale_bias"], phi) + values["scale_offset"]
        shift = lock(k_b.flatten() * gain, values["shift_weight"], values["shift_bias"], psi) + values["shift_offset"]
        return scale.reshape(self.shape), shift.reshape(self.shape)

    def locked_value(self, name: str, secret: Tensor) -> Tensor:
        """Return standard normal numbers, and zeros for the offsets."""
        return torch.zeros_like(secret, requires_grad=False) if name.endswith("offset") else _random(self, name, secret)


class SecretNorm(nn.Module):
    """A normalisation layer in two parts: an ordinary one without scale and shift, which is public, and a secret.

    The public part is a child like any other, so that conversion to synchronised batch normalisation reaches it. In state
    dicts its running statistics have the names that they had without the wrapper.

    Args:
        norm: The layer; it is copied, and hooks on it move to the wrapper.
        secret: Makes scale and shift.
    """

    def __init__(self, norm: nn.Module, secret: SecretModule) -> None:
        super().__init__()
        self.training = norm.training
        self.origin: list[str] = []  # the names at which it was put in
        self.shape = _shape(norm)
        self.norm = without_affine(norm)
        self.secret = secret
        for name in _HOOKS:  # the dictionaries themselves: handles that remove a hook refer to them
            setattr(self, name, getattr(norm, name))
            setattr(self.norm, name, OrderedDict())

    @property
    def is_locked(self) -> bool:
        """Whether random numbers stand where the secrets were."""
        return self.secret.is_locked

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return both, with their graph."""
        return self.secret()

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Normalise, scale and shift."""
        scale, shift = self.scale_and_shift()
        return affine(self.norm(x), scale, shift, _trailing(self.norm, x))

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the public part's state under the names of the layer that was wrapped."""
        given = {} if destination is None and not args else {"destination": args[0] if args else destination}
        return self.norm.state_dict(**given, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self.norm.state_dict():
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}norm.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class PrivateAffineNorm(SecretNorm):
    """A normalisation layer with a private scale and shift, and no key.

    Args:
        norm: The layer, from whose scale and shift it starts.

    Raises:
        InputError: the layer is none that can be wrapped.

    Example:
        >>> layer = PrivateAffineNorm(nn.BatchNorm2d(3))
        >>> list(layer.state_dict()), len(list(layer.parameters()))
        (['running_mean', 'running_var', 'num_batches_tracked'], 2)
    """

    secret: SecretAffine

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm, SecretAffine(*affine_of(norm)))


class KeyLockedNorm(SecretNorm):
    """A normalisation layer whose scale and shift a private lock makes of a private key.

    A new one is locked: random numbers stand in for lock and key until `start.start_locks` or a vault fills them.

    Args:
        norm: The layer.
        key_length: d.
        activation: See `functional.branches`.
        distribution: How its keys are drawn.
        spread: See `start.fresh_values`.
        previous: The locked layer whose scale and shift are this one's keys; None where it has a key of its own.

    Raises:
        InputError: the layer is none that can be wrapped.

    Example:
        >>> layer = KeyLockedNorm(nn.BatchNorm2d(3), key_length=16)
        >>> list(layer.state_dict()), layer.is_locked
        (['running_mean', 'running_var', 'num_batches_tracked'], True)

    Source:
        arXiv 2305.04095; the wrapper, the start and the softplus are this project's.
    """

    secret: SecretLock

    def __init__(
        self,
        norm: nn.Module,
        key_length: int = 1024,  # arXiv 2305.04095, released code
        activation: Activation = "softplus",
        distribution: Distribution = "normal",
        spread: float | int = 0.0,
        previous: "KeyLockedNorm | None" = None,
    ) -> None:
        scale, shift = affine_of(norm)
        length = key_length if previous is None else math.prod(previous.secret.shape)
        shape, keyed = tuple(scale.shape), previous is None
        super().__init__(norm, SecretLock(shape, length, activation, distribution, spread, keyed))
        self._previous = (previous,)  # in a tuple: the other layer is no child of this one
        self.secret.lock()
        if activation == "softplus":
            with torch.no_grad():
                self.secret.scale_offset.copy_(scale.flatten() - 1)
                self.secret.shift_offset.copy_(shift.flatten())

    @property
    def previous(self) -> "KeyLockedNorm | None":
        """The locked layer that gives this one its keys."""
        return self._previous[0]

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return both, with their graph, through all locks before."""
        return self.secret(None if self.previous is None else self.previous.scale_and_shift())


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return copies of a normalisation layer's scale and shift; 1 and 0 where it has none.

    Args:
        norm: The layer.

    Raises:
        InputError: it is none that can be wrapped, or does not know its channels yet.
    """
    if not isinstance(norm, NORMS):
        raise InputError(
            f"A {type(norm).__name__} is no normalisation layer that can be locked; name a batch, instance, group or "
            "layer normalisation."
        )
    if any(is_lazy(p) for p in (*norm.parameters(), *norm.buffers())):
        raise InputError(
            f"A {type(norm).__name__} does not know its channels yet; run the model once before it is locked."
        )
    shape = _shape(norm)
    like = next((t for t in (*norm.parameters(), *norm.buffers()) if t.is_floating_point()), torch.empty(0))
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    scale = torch.ones(shape).to(like) if weight is None else weight.detach().clone()
    shift = torch.zeros(shape).to(like) if bias is None else bias.detach().clone()
    return scale, shift


def without_affine(norm: nn.Module) -> nn.Module:
    """Return a copy of a normalisation layer that only normalises.

    Args:
        norm: The layer; it stays as it is.
    """
    bare = copy.copy(norm)  # a deep copy would also copy what hooks refer to
    bare.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(norm).items()}
    bare._buffers = {k: None if b is None else b.detach().clone() for k, b in norm._buffers.items()}
    bare._parameters = dict.fromkeys(norm._parameters)
    setattr(bare, "elementwise_affine" if isinstance(norm, nn.LayerNorm) else "affine", False)
    return bare


def with_affine(norm: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """Return a copy of a bare normalisation layer that has the given scale and shift as its parameters.

    Args:
        norm: What `without_affine` returned.
        scale: gamma.
        shift: beta.
    """
    full = without_affine(norm)
    full._parameters = {"weight": nn.Parameter(scale.detach().clone()), "bias": nn.Parameter(shift.detach().clone())}
    setattr(full, "elementwise_affine" if isinstance(norm, nn.LayerNorm) else "affine", True)
    return full


def _shape(norm: nn.Module) -> tuple[int, ...]:
    if isinstance(norm, nn.LayerNorm):
        return tuple(norm.normalized_shape)
    return (norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features,)  # pyright: ignore[reportReturnType]


def _trailing(norm: nn.Module, x: Tensor) -> int:
    """Return how many dimensions of an input follow those that scale and shift belong to."""
    if isinstance(norm, nn.LayerNorm):
        return 0
    single = isinstance(norm, _InstanceNorm) and x.ndim == norm._get_no_batch_dim()
    return x.ndim - (1 if single else 2)


def _random(module: SecretModule, name: str, secret: Tensor) -> Tensor:
    if secret.is_meta or not secret.is_floating_point():
        return SecretModule.locked_value(module, name, secret)
    return torch.randn(secret.shape, generator=seeded_generator("locked", name, *secret.shape)).to(secret)
