"""Modules whose weights train like any other and leave through no state dict, pickle or print-out."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.redaction import held_values, replaced_state

__all__ = ["SecretModule", "exposed_secrets", "named_public_parameters", "named_secret_parameters", "secret_modules"]


class SecretModule(nn.Module):
    """Base of layers that stay with their owner: what they hold is trained, and is in no file that others get.

    Parameters, buffers and children are ordinary: optimizers, DistributedDataParallel and automatic mixed precision
    see them. But no ``state_dict`` has an entry for them, whatever module it is taken of, so that weights-only
    checkpoints, averaged models and federated engines do not get them either. A strict load passes without them, leaves
    them as they are, and reports entries for them as unexpected: a server cannot overwrite them. A pickle holds random
    values in their place and is locked. A deep copy in memory keeps them. Printing shows the class alone.

    Three things hold secrets and are not this module's: the optimizer's state
    (see `lightning_privacy.secrets.split_optimizer_states`), gradients, and what reads parameters by itself (histograms
    of ``wandb.watch``, exports to ONNX). Keep secret texts in a `KeyVault`, not on a module.

    Example:
        >>> class Gain(SecretModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(3))
        >>> net = nn.Sequential(nn.Linear(3, 3), Gain())
        >>> len(list(net.parameters())), list(net.state_dict()), net[1]
        (3, ['0.weight', '0.bias'], Gain(secret))
    """

    _locked: bool = False

    @property
    def is_locked(self) -> bool:
        """Whether random values stand where the secrets were."""
        return self._locked

    def secret_tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers, those of children too, by name; they share memory with the module."""
        return {name: value.detach() for name, value in (*self.named_parameters(), *self.named_buffers())}

    @torch.no_grad()
    def fill(self, secrets: Mapping[str, Tensor]) -> None:
        """Put secrets in and unlock.

        Args:
            secrets: What `secret_tensors` returned: the same names and shapes; other number types are converted.

        Raises:
            InputError: names or shapes differ; nothing was changed then.
        """
        here = self.secret_tensors()
        if absent := sorted(set(here) - set(secrets)):
            raise InputError(f"The secrets of {self._get_name()} lack {absent}. Give all of {sorted(here)}.")
        if unknown := sorted(set(secrets) - set(here)):
            raise InputError(f"{self._get_name()} has no place for {unknown}. Give {sorted(here)} alone.")
        for name, value in here.items():
            given = tuple(secrets[name].shape)
            if given != tuple(value.shape):
                raise InputError(
                    f"The secret `{name}` of {self._get_name()} has shape {given}, and {tuple(value.shape)} is needed. Use "
                    "the vault that belongs to this model."
                )
            if value.is_meta:
                raise InputError(f"`{name}` of {self._get_name()} is on the meta device. Materialise the module first.")
        for name, value in here.items():
            value.copy_(secrets[name])
        self._mark(locked=False)

    @torch.no_grad()
    def lock(self) -> None:
        """Overwrite every secret by `locked_value` in memory, drop the gradients, and mark the module as locked."""
        for name, value in [*held_values(self)]:
            if isinstance(value, Tensor):
                value.detach().copy_(self.locked_value(name, value))
            else:
                value.flags.writeable = True
                value[...] = 0
        for parameter in self.parameters():
            parameter.grad = None
        self._mark(locked=True)

    def locked_value(self, name: str, secret: Tensor) -> Tensor:
        """Return what stands in a secret's place in a locked module: for a subclass to change.

        Args:
            name: The secret's name; empty for a tensor in a plain attribute.
            secret: The secret, of which shape, type and device alone may be used.

        Returns:
            Draws from N(0, 1/d), d the last dimension, the same on all ranks; zeros where numbers are no floats.
        """
        if not secret.is_floating_point():
            return torch.zeros_like(secret, requires_grad=False)
        shape = tuple(secret.shape)
        if secret.is_meta:
            return torch.empty_like(secret, requires_grad=False)
        drawn = torch.randn(shape, generator=seeded_generator("locked", name, *shape))
        return (drawn / math.sqrt(max(shape[-1] if shape else 1, 1))).to(secret)

    # --- what leaves ---------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the destination as it is; children are not asked."""
        if destination is None:
            destination = args[0] if args else nn.Module().state_dict()
        return destination

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Write nothing, for callers that go around `state_dict`."""

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
        """Take nothing; entries for secrets are unexpected."""
        foreign = [name for name in state_dict if name.startswith(prefix)]
        unexpected_keys += foreign
        for name in foreign:
            del state_dict[name]
        # `load_state_dict` goes on to the children with this same dictionary: they find their own values in it.
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(destination=state_dict, prefix=f"{prefix}{name}.", keep_vars=True)

    def __getstate__(self) -> dict[str, Any]:
        return replaced_state(self, self.locked_value) | {"_locked": True}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (type(self),), self.__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> "SecretModule":
        for _, value in held_values(self):
            if (
                isinstance(value, Tensor) and not value.is_leaf
            ):  # kept from the last forward pass; PyTorch refuses to copy it
                memo.setdefault(id(value), value.detach().clone())
        twin = memo[id(self)] = _empty(type(self))
        twin.__setstate__(copy.deepcopy(vars(self), memo))
        return twin

    def __copy__(self) -> "SecretModule":
        twin = _empty(type(self))
        twin.__setstate__(dict(vars(self)))
        return twin

    def __repr__(self) -> str:
        return f"{self._get_name()}({'secret, locked' if self.is_locked else 'secret'})"

    def _mark(self, *, locked: bool) -> None:
        for module in self.modules():
            if isinstance(module, SecretModule):
                module._locked = locked


def secret_modules(root: nn.Module) -> Iterator[tuple[str, SecretModule]]:
    """Yield the secret modules in a module with their names; one inside another is part of the outer one.

    Args:
        root: Any module.
    """
    outer: list[str] = []
    for name, module in root.named_modules():
        if isinstance(module, SecretModule) and not any(not o or name.startswith(f"{o}.") for o in outer):
            outer.append(name)
            yield name, module


def named_secret_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of all secret modules in a module, by their names in it.

    Args:
        root: Any module.
    """
    return {name: p for prefix, module in secret_modules(root) for name, p in module.named_parameters(prefix)}


def named_public_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are in no secret module, by name: what may be shared, gradients included.

    Args:
        root: Any module.
    """
    secret = {id(p) for p in named_secret_parameters(root).values()}
    return {name: p for name, p in root.named_parameters() if id(p) not in secret}


def exposed_secrets(root: nn.Module) -> list[str]:
    """Return entries of a module's state dict that share memory with a secret: a weight tied to a public layer.

    Args:
        root: Any module.
    """
    secret = {
        value.untyped_storage().data_ptr()
        for _, module in secret_modules(root)
        for _, value in held_values(module)
        if isinstance(value, Tensor) and value.numel()
    }
    entries = root.state_dict(keep_vars=True).items()
    return [n for n, v in entries if isinstance(v, Tensor) and v.numel() and v.untyped_storage().data_ptr() in secret]


def _empty(cls: type[SecretModule]) -> SecretModule:
    return cls.__new__(cls)
