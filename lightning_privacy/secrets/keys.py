"""Keys of mean zero, drawn from the operating system or derived from a master key for one site."""

import math
import secrets

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.hkdf import hkdf_sha256

__all__ = ["DISTRIBUTIONS", "key_from_bytes", "site_key", "zero_mean_key"]

DISTRIBUTIONS = ("rademacher", "normal")
_SHORTEST_MASTER = 16  # bytes: 128 bits, below which a master key can be searched for


def zero_mean_key(size: int, distribution: str = "rademacher") -> Float[Tensor, " size"]:
    """Return a new key whose entries have mean zero, from the operating system's source of randomness.

    Entries of U(0, 1) would share their mean with every other key: two independent keys then give activations with a
    cosine of 0.75, so that most of what a lock does would not depend on the key.

    Args:
        size: Number of entries, at least 1.
        distribution: ``rademacher`` (-1 or 1, the same on every machine) or ``normal`` (N(0, 1)).

    Raises:
        InputError: the size or the distribution is out of range.

    Example:
        >>> zero_mean_key(64).abs().sum().item()
        64.0
    """
    return key_from_bytes(secrets.token_bytes(_bytes_needed(size, distribution)), size, distribution)


def site_key(
    master: bytes, site: str, size: int, distribution: str = "rademacher", salt: bytes = b""
) -> Float[Tensor, " size"]:
    """Return the key of one site, derived from a master key: keys of other sites say nothing about it.

    Args:
        master: The master key, at least 16 random bytes.
        site: What the key is for, such as the name of a layer.
        size: Number of entries, at least 1.
        distribution: ``rademacher`` or ``normal``; the latter may differ in the last bit between machines.
        salt: Of HKDF; not secret.

    Raises:
        InputError: the master key is too short, or the size or the distribution is out of range.

    Example:
        >>> site_key(bytes(range(32)), "conv1", 6).tolist()
        [-1.0, -1.0, -1.0, 1.0, -1.0, 1.0]

    Source:
        RFC 5869 (HKDF); blocks of 8160 bytes are told apart by a counter in ``info``.
    """
    if len(master) < _SHORTEST_MASTER:
        raise InputError(
            f"A master key of {len(master)} bytes can be searched for. Make one of at least {_SHORTEST_MASTER} random bytes "
            "with `KeyVault.put_master`."
        )
    needed, most = _bytes_needed(size, distribution), 255 * 32
    blocks = [
        hkdf_sha256(master, min(most, needed - start), salt, f"lightning_privacy site {start // most} {site}".encode())
        for start in range(0, needed, most)
    ]
    return key_from_bytes(b"".join(blocks), size, distribution)


def key_from_bytes(material: bytes, size: int, distribution: str = "rademacher") -> Float[Tensor, " size"]:
    """Return a key in single precision from uniformly random bytes.

    Args:
        material: One bit an entry for ``rademacher``, eight bytes for ``normal``.
        size: Number of entries.
        distribution: ``rademacher`` or ``normal``.

    Raises:
        InputError: there are too few bytes, or the size or the distribution is out of range.

    Example:
        >>> key_from_bytes(bytes([0b10100000]), 3).tolist()
        [1.0, -1.0, 1.0]
    """
    if len(material) < _bytes_needed(size, distribution):
        raise InputError(f"{len(material)} random bytes are too few for a {distribution} key of {size} entries.")
    raw = np.frombuffer(material, np.uint8)
    if distribution == "rademacher":
        return torch.from_numpy(np.unpackbits(raw)[:size].astype(np.float32) * 2 - 1)
    # 52 bits, the middle of each interval: 0 and 1, where the quantile is infinite, cannot come, not even by rounding
    uniform = ((raw[: 8 * size].view("<u8") >> 12).astype(np.float64) + 0.5) / 2**52
    return torch.special.ndtri(torch.from_numpy(uniform)).float()


def _bytes_needed(size: int, distribution: str) -> int:
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"There are no keys of distribution `{distribution}`. Choose {' or '.join(DISTRIBUTIONS)}.")
    if size < 1:
        raise InputError(f"A key of {size} entries is none. Give a size of at least 1.")
    return math.ceil(size / 8) if distribution == "rademacher" else 8 * size
