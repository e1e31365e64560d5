"""Where a run's keys come from: a vault, or the operating system's randomness."""

import secrets as system
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.callbacks.key_lock.keeping import SALT
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.fingerprint import fingerprint_of, tensor_bytes
from lightning_privacy.secrets.secret_ref import SecretRef
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["keep_derived", "key_fingerprint", "material_of", "read_material", "shared_material"]

Material = bytes | Tensor


def material_of(vault: KeyVault, entry: str) -> Material:
    """Return a vault's master key as bytes, or its key as a tensor.

    Args:
        vault: The vault.
        entry: Its name there.

    Raises:
        InputError: there is none of that name, or it is a text.
    """
    value = vault.tensor(entry)
    return tensor_bytes(value) if vault.kind(entry) == "master" else value


def key_fingerprint(material: Material) -> str:
    """Return the public fingerprint of a key, which `KeyVault.matches` compares with a vault's entry.

    Args:
        material: The master key or the key.
    """
    value = torch.frombuffer(bytearray(material), dtype=torch.uint8) if isinstance(material, bytes) else material.cpu()
    return fingerprint_of(value, SALT)


def read_material(ref: SecretRef, owner: str, create: bool = True) -> Material:
    """Return the key that a reference names; a master key is made where the vault or the entry is absent.

    Args:
        ref: Into a vault.
        owner: Who asks, for what is said.
        create: Whether an absent key is made.

    Raises:
        InputError: the vault cannot be read, or the reference is none to a vault's key.
    """
    path = ref.vault_path
    if path is None:
        ref.resolve()  # says what is wrong with one that was refused
        raise InputError(
            f"`{owner}` takes its key from a vault, not from an environment variable. Give `vault:PATH#NAME`."
        )
    vault = KeyVault(path)
    if create and not path.exists():
        vault = KeyVault.create(path)
    if create and ref.entry not in vault.names():
        vault.put_master(ref.entry)
        rank_zero_info(
            f"`{owner}` wrote a new master key `{ref.entry}` to {path} (mode 0600). Keep it, and do not share it: without it "
            "the model cannot be used."
        )
    return material_of(vault, ref.entry)


def shared_material(module: L.LightningModule, ref: SecretRef | None, owner: str) -> Material:
    """Return the key of a run, the same on all ranks: rank 0 reads or draws it and tells the others.

    Args:
        module: Attached to its trainer.
        ref: Where it lies; None draws one that is kept nowhere.
        owner: Who asks.

    Raises:
        InputError: rank 0 could not read it.
    """
    answer: tuple[str, Any] = ("", None)
    if module.trainer.is_global_zero:
        try:
            answer = ("", system.token_bytes(32) if ref is None else read_material(ref, owner))
        except InputError as wrong:  # said on all ranks: the others would wait for ever
            answer = (str(wrong), None)
    said, material = module.trainer.strategy.broadcast(answer)
    if said or material is None:
        raise InputError(said)
    return material


def keep_derived(ref: SecretRef, site: str, keys: dict[str, Tensor]) -> None:
    """Keep derived keys in the vault as well, so that `find_secrets` looks for them.

    Args:
        ref: Of the master key.
        site: What the keys are for.
        keys: By layer.
    """
    if ref.vault_path is None:
        return
    vault = KeyVault(ref.vault_path)
    if vault.kind(ref.entry) == "master":
        here = set(vault.names())
        new = {f"{site}/{name}": key for name, key in keys.items()}
        if changed := {n: k for n, k in new.items() if n not in here or not torch.equal(vault.tensor(n), k)}:
            vault.put_all(changed, replace=True)
