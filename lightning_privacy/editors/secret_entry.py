"""The secret of a lock in a vault: read it, or make one for a first run."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from torch import Tensor

from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.fingerprint import tensor_bytes
from lightning_privacy.secrets.secret_ref import SecretRef
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["SEED", "Takes", "create_secret", "read_secret"]

Takes = Literal["prompt", "seed"]
"""What an editor needs of its key: a prompt and a seed, or a seed alone."""
SEED = "/seed"
"""Ends the name of the entry that holds the seed of a prompt's entry."""
RELEASED_SEED = 1024  # released evaluation script of arXiv 2405.16285: for a prompt that comes without a seed


def read_secret(ref: SecretRef, takes: Takes) -> LockSecret:
    """Return the secret that a reference names.

    A prompt is a text; the entry of its name with ``/seed`` behind, where there is one, holds the seed (a master key, or a
    whole number), else it is 1024 as in the released script, which is public. A seed alone is a master key, a tensor or a
    text.

    Args:
        ref: ``vault:PATH#NAME`` or ``env:NAME``.
        takes: What the editor needs.

    Raises:
        InputError: it is absent, or of another kind.
    """
    value = ref.resolve()
    if takes == "seed":
        return LockSecret(None, value.encode() if isinstance(value, str) else _seed(value))
    if not isinstance(value, str):
        raise InputError(f"{ref} is a key, and this editor needs a prompt. Name an entry that holds a text.")
    path = ref.vault_path
    if path is None:
        return LockSecret(value, RELEASED_SEED)
    vault, entry = KeyVault(path), ref.entry + SEED
    return LockSecret(value, _seed(vault.tensor(entry)) if entry in vault.names() else RELEASED_SEED)


def create_secret(ref: SecretRef, takes: Takes) -> bool:
    """Make the vault and the entry where they are absent; an entry that is there stays.

    A seed is 32 random bytes. A prompt is drawn from the published styles, beside such a seed: the seed is what nobody
    guesses.

    Args:
        ref: Into a vault.
        takes: What the editor needs.

    Returns:
        Whether something was made.

    Raises:
        InputError: the reference is none to a vault, or the vault cannot be written.
    """
    path = ref.vault_path
    if path is None:
        ref.resolve()
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path):
        vault = KeyVault(path) if path.exists() else KeyVault.create(path)
        if ref.entry in vault.names():
            return False
        if takes == "seed":
            vault.put_master(ref.entry)
            return True
        from lightning_privacy.editors.published import published_prompts

        styles = [p.prompt for p in published_prompts() if p.group.startswith("style")]
        vault.put_master(ref.entry + SEED)
        vault.put(ref.entry, f"in the style of {secrets.choice(styles)}")
        return True


@contextmanager
def _alone(vault: Path) -> Iterator[None]:
    """Hold other runs that begin now, so that two of them do not make two keys."""
    descriptor = os.open(vault.with_name(f".{vault.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process
        yield
    finally:
        os.close(descriptor)


def _seed(value: Tensor) -> int | bytes:
    if value.numel() == 1 and not value.is_floating_point():
        return int(value)
    return tensor_bytes(value)
