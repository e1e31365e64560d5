"""HKDF: from one master key, as many independent keys as there are sites."""

import hashlib
import hmac

from lightning_privacy.errors import InputError

__all__ = ["hkdf_sha256"]

_DIGEST = 32  # bytes of SHA-256


def hkdf_sha256(key: bytes, length: int, salt: bytes = b"", info: bytes = b"") -> bytes:
    r"""Return key material derived from a key by HKDF with SHA-256.

    Args:
        key: The input keying material.
        length: Bytes to return, 1 to 8160 (255 digests).
        salt: Not secret; 32 zero bytes if empty.
        info: What the result is for: another text gives an unrelated result.

    Raises:
        InputError: the length is out of range.

    Example:
        >>> hkdf_sha256(b"\x0b" * 22, 8, bytes(range(13)), bytes(range(0xF0, 0xFA))).hex()
        '3cb25f25faacd57a'

    Source:
        RFC 5869, sections 2.2 and 2.3, and test case 1.
    """
    if not 1 <= length <= 255 * _DIGEST:
        raise InputError(f"HKDF with SHA-256 gives 1 to {255 * _DIGEST} bytes, not {length}. Derive several keys.")
    pseudorandom = hmac.new(salt or bytes(_DIGEST), key, hashlib.sha256).digest()
    block, out = b"", b""
    for counter in range(1, -(-length // _DIGEST) + 1):
        block = hmac.new(pseudorandom, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:length]
