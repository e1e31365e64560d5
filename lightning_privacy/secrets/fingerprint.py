"""Fingerprints: whether two secrets are the same, for files that do not hold either."""

import hashlib
import hmac

import torch
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["fingerprint_of", "matches_fingerprint", "tensor_bytes"]

# OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256: a text may be guessed, and its fingerprint is public
_TEXT_ROUNDS = 600_000


def fingerprint_of(secret: Tensor | str, salt: bytes) -> str:
    """Return a secret's salted SHA-256, which says nothing but whether another secret is equal to it.

    Texts are hashed 600 000 times (PBKDF2), because a short one could be found by trying; tensors once (HMAC).

    Args:
        secret: A tensor, of which type, shape and bytes count, or a text.
        salt: At least 8 bytes, not secret; it stands in front of the result.

    Returns:
        Salt and digest in hexadecimal, with a colon between.

    Raises:
        InputError: the salt is too short.

    Example:
        >>> fingerprint_of(torch.ones(4), bytes(8))[:24]
        '0000000000000000:a57bc06'
    """
    if len(salt) < 8:
        raise InputError(f"A salt of {len(salt)} bytes does not tell fingerprints apart. Give at least 8 random bytes.")
    if isinstance(secret, str):
        digest = hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, _TEXT_ROUNDS)
    else:
        kind = f"{secret.dtype} {tuple(secret.shape)} ".encode()
        digest = hmac.new(salt, kind + tensor_bytes(secret), hashlib.sha256).digest()
    return f"{salt.hex()}:{digest.hex()}"


def matches_fingerprint(secret: Tensor | str, fingerprint: str) -> bool:
    """Return whether a fingerprint is this secret's, whichever vault made it.

    Args:
        secret: A tensor or a text.
        fingerprint: What `fingerprint_of` returned.

    Raises:
        InputError: the text is no fingerprint.

    Example:
        >>> matches_fingerprint(torch.ones(4), fingerprint_of(torch.ones(4), b"any salt"))
        True
    """
    salt, _, digest = fingerprint.partition(":")
    try:
        made = fingerprint_of(secret, bytes.fromhex(salt))
    except (ValueError, InputError) as wrong:
        raise InputError("This is no fingerprint of a secret: it has the form SALT:DIGEST in hexadecimal.") from wrong
    return hmac.compare_digest(made, f"{salt}:{digest}".lower())


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's numbers as they lie in memory, row by row.

    Args:
        tensor: On any device.

    Example:
        >>> tensor_bytes(torch.ones(1)).hex()
        '0000803f'
    """
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
