"""Which of a module's tensors a federation shares: all but the secrets, and all but what a client keeps local."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_privacy.callbacks.key_lock.layers import NORMS, SecretNorm
from lightning_privacy.callbacks.key_lock.protect import shared_state_dict
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.errors import InputError

__all__ = ["LOCAL", "Local", "load_shared", "local_names", "prepare_module", "read_shared", "shared_names"]

Local = str | Sequence[str]
"""``none``, ``statistics``, ``norms``, or names of tensors."""
LOCAL = ("none", "statistics", "norms")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NAMED = 5


def local_names(module: nn.Module, local: Local = "none") -> list[str]:
    """Return the entries of a module's state dict that a client keeps to itself beside its secrets.

    Args:
        module: After ``configure_model`` and every surgery.
        local: ``none``; ``statistics`` of batch normalisation (known to leak, and worse as an average); ``norms``, all of
            every normalisation layer, as FedBN does; or the entries themselves.

    Raises:
        InputError: the module has no such entry.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> local_names(net, "statistics")
        ['1.running_mean', '1.running_var', '1.num_batches_tracked']

    Source:
        FedBN: arXiv 2102.07623, algorithm 1.
    """
    every = list(shared_state_dict(module))
    if not isinstance(local, str):
        if unknown := sorted(set(local) - set(every)):
            raise InputError(f"`local` names {unknown[:_NAMED]}, which this {type(module).__name__} does not have.")
        return [name for name in every if name in set(local)]
    if local not in LOCAL:
        raise InputError(f"`local` is {local!r}; it must be one of {', '.join(LOCAL)}, or a list of names.")
    if local == "none":
        return []
    prefixes = tuple(
        f"{name}." if name else "" for name, part in module.named_modules() if isinstance(part, (SecretNorm, *NORMS))
    )
    if not prefixes:
        raise InputError(
            f"`local` is {local!r}, and this {type(module).__name__} has no normalisation layer. Leave `local` out."
        )
    norms = [name for name in every if name.startswith(prefixes)]
    return [n for n in norms if local == "norms" or n.rpartition(".")[2] in _STATISTICS]


def shared_names(module: nn.Module, local: Local = "none") -> list[str]:
    """Return the entries of a module's state dict that go to the server and come back, in their order.

    Args:
        module: After ``configure_model`` and every surgery.
        local: See `local_names`.

    Raises:
        InputError: nothing would be shared.
    """
    kept = set(local_names(module, local))
    names = [name for name in shared_state_dict(module) if name not in kept]
    if not names:
        raise InputError(
            f"Nothing of this {type(module).__name__} would be shared with `local` {local!r}. Keep less of it local."
        )
    return names


def read_shared(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of shared entries on the CPU.

    Args:
        module: The module.
        names: As of `shared_names`.
    """
    state = shared_state_dict(module)
    return {name: state[name].cpu() for name in names}


@torch.no_grad()
def load_shared(module: nn.Module, received: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Load what a server sent: exactly what this client shares. Local entries and secrets stay as they are.

    Args:
        module: Changed in place.
        received: By name.
        names: What this client shares, as of `shared_names`.

    Raises:
        InputError: the server sent more, less, or other shapes. A server that asks for more by sending it gets nothing.
    """
    own = list(names)
    if wrong := sorted(set(own) ^ set(received)):
        extra = sorted(set(received) - set(own))
        what = "sent tensors that this client does not share" if extra else "did not send"
        raise InputError(
            f"The server {what}: {', '.join((extra or wrong)[:_NAMED])}{', ...' if len(extra or wrong) > _NAMED else ''}. "
            "Nothing was loaded, and nothing is sent. Give server and clients the same model and the same `local`."
        )
    here = module.state_dict(keep_vars=False)
    for name in own:
        if tuple(received[name].shape) != tuple(here[name].shape):
            raise InputError(
                f"The server sent `{name}` of shape {tuple(received[name].shape)}, and this client's is "
                f"{tuple(here[name].shape)}. Give server and clients the same model."
            )
    for name in own:
        here[name].copy_(received[name])  # entries share memory with the module; an average of counters is rounded down


def prepare_module(module: nn.Module, defences: Iterable[Defence]) -> None:
    """Build a module as a client has it, without a trainer and without any secret: for a server's first weights.

    Args:
        module: Changed in place.
        defences: The clients' defences; those that change layers do so here, and their secrets stay locked.
    """
    configure = getattr(module, "configure_model", None)
    if configure is not None:
        configure()
    for defence in defences:
        if Slot.SURGERY in defence.slots:
            defence.surgery(module)  # pyright: ignore[reportArgumentType]
