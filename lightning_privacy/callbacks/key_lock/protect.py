"""Key locks without Lightning: lock a module, share the rest, keep and restore the secrets, change keys."""

import os
import secrets as system
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lightning_privacy.callbacks.key_lock.functional import Activation, Distribution
from lightning_privacy.callbacks.key_lock.keeping import fetch_layers, keep_layers, states_folder
from lightning_privacy.callbacks.key_lock.material import keep_derived, read_material
from lightning_privacy.callbacks.key_lock.start import keys_for, lengths_of, locks_of, start_locks, turn_keys
from lightning_privacy.callbacks.key_lock.wrapping import Layers, check_layers, check_lock, lock_norms
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_module import exposed_secrets, named_public_parameters
from lightning_privacy.secrets.secret_ref import SecretRef
from lightning_privacy.secrets.vault import KeyVault

__all__ = [
    "keep_secrets",
    "load_shared_state_dict",
    "protect",
    "restore_secrets",
    "rotate_key",
    "shared_gradients",
    "shared_state_dict",
]


def protect(
    module: nn.Module,
    layers: Layers = "first",
    *,
    key: SecretRef | str | None = None,
    site: str = "key_lock",
    key_length: int = 1024,  # arXiv 2305.04095, released code
    activation: Activation = "softplus",  # chosen here, see KeyLock
    key_distribution: Distribution = "normal",
    chain: bool = False,
    spread: float | int = 0.0,
    lock_seed: int | None = None,
) -> list[str]:
    """Lock normalisation layers of a module in place, before its optimizer is built and before it is wrapped for DDP.

    Arguments are those of `KeyLock`. Layers that are locked already are left as they are.

    Args:
        module: Any module.
        layers: ``first``, ``all``, or patterns of names.
        key: ``vault:PATH#NAME``; None draws a key that is kept nowhere but in the module.
        site: What the keys are for.
        key_length: d.
        activation: Of the locks.
        key_distribution: Of the keys.
        chain: Whether later locks take the scale and shift before them for keys.
        spread: Of the start.
        lock_seed: Of public first weights; None for secret ones.

    Returns:
        Names of the locked layers.

    Raises:
        NoEffectError: the module has no such layer.
        InputError: the key cannot be read, or does not fit.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> protect(net), list(shared_state_dict(net))
        (['1'], ['0.weight', '0.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked'])
    """
    check_layers("protect", layers)
    check_lock("protect", key_length, activation, key_distribution, spread)
    ref = None if key is None else SecretRef(key)
    new = not locks_of(module)
    report = lock_norms("protect", module, layers, key_length, activation, key_distribution, spread, chain)
    if new:
        material = system.token_bytes(32) if ref is None else read_material(ref, "protect")
        start_locks(module, material, site, key_distribution, spread, lock_seed)
        if ref is not None:
            keep_derived(ref, site, keys_for(material, site, lengths_of(module), key_distribution))
    return list(report.layers)


def shared_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of what a client may share of its weights: the state dict, which has no entry for any secret.

    Args:
        module: Any module.

    Raises:
        InputError: a secret is tied to a public weight, and would be shared with it.
    """
    if tied := exposed_secrets(module):
        raise InputError(f"The entries {tied} share memory with a secret. Untie them before anything is shared.")
    return {name: value.detach().clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def load_shared_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what a server sends: every public weight, and nothing else.

    Args:
        module: The client's module; its secrets stay as they are.
        state: As of `shared_state_dict`, averaged over clients, say.

    Raises:
        InputError: an entry is missing, or the module has no public place for one.
    """
    here = set(module.state_dict())
    if wrong := sorted(here ^ set(state)):
        raise InputError(
            f"What was sent differs from what this module shares in {', '.join(wrong[:5])}{', ...' if wrong[5:] else ''}. Send "
            "exactly the entries of `shared_state_dict`."
        )
    module.load_state_dict(state, strict=True)


def shared_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients that a client may share; any gradient of a lock would give the key away.

    Args:
        module: After ``backward``.
    """
    public = named_public_parameters(module).items()
    return {name: p.grad.detach().clone() for name, p in public if p.grad is not None}


def keep_secrets(module: nn.Module, vault: KeyVault | str | os.PathLike[str]) -> str:
    """Write a module's private layers into the folder of a vault, one file of mode 0600 for each state.

    Args:
        module: With private layers.
        vault: A vault, its file, or a folder.

    Returns:
        The fingerprint of this state, which is public: keep it beside the shared weights, for `restore_secrets`.
    """
    place = vault.path if isinstance(vault, KeyVault) else Path(vault)
    return keep_layers(module, states_folder(vault), place if place.is_file() else None)


def restore_secrets(module: nn.Module, vault: KeyVault | str | os.PathLike[str], fingerprint: str) -> None:
    """Put private layers back into a module that has them at the same places, and unlock it.

    Args:
        module: Changed in place.
        vault: As for `keep_secrets`.
        fingerprint: What `keep_secrets` returned.

    Raises:
        InputError: that state is not there.
    """
    fetch_layers(module, states_folder(vault), fingerprint)


def rotate_key(
    module: nn.Module, *, key: SecretRef | str | None = None, site: str = "key_lock", refit: bool | None = None
) -> bool:
    """Give every lock of a module a new key.

    Where the biases are fitted again, every scale and shift stays as it is: the new key protects the key, not them, and an
    attacker who has found them loses nothing. Without, as in the paper, the model computes something else from then on.

    Args:
        module: With key-locked layers, unlocked.
        key: ``vault:PATH#NAME`` of the new key; None draws one that is kept nowhere but in the module.
        site: What the keys are for; another text gives other keys of the same master key.
        refit: Whether biases are fitted; None for where the activation is ``softplus``.

    Returns:
        Whether the module computes what it computed before; a warning says so where it does not.

    Raises:
        InputError: the module has no lock, or it is locked.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2))
        >>> protect(net), rotate_key(net)
        (['0'], True)
    """
    layers = locks_of(module)
    if not layers:
        raise InputError(f"This {type(module).__name__} has no key-locked layer, so that there is no key to change.")
    ours = all(layer.secret.activation == "softplus" for layer in layers.values())
    fits = ours if refit is None else refit
    distribution = next(iter(layers.values())).secret.distribution
    material = system.token_bytes(32) if key is None else read_material(SecretRef(key), "rotate_key")
    turn_keys(module, keys_for(material, site, lengths_of(module), distribution), keep_function=fits)
    if not fits:
        warnings.warn(
            f"The keys of {', '.join(layers)} were changed without fitting the locks: the model computes something else now.",
            stacklevel=2,
        )
    return fits
