"""A vault under a passphrase: scrypt makes the key, AES-256-GCM encrypts and authenticates."""

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.vault_format import ENTRY, VERSION, file_metadata

__all__ = ["Passphrase", "is_encrypted", "open_sealed", "seal"]

# RFC 7914 section 2; N = 2^17, r = 8, p = 1 of the OWASP Password Storage Cheat Sheet: 128 MiB, about half a second
_COST = {"n": 2**17, "r": 8, "p": 1}
_MOST = {"n": 2**20, "r": 16, "p": 4}  # chosen here: a damaged or planted file must not ask for all memory
_TENSOR = "encrypted"


class Passphrase:
    """A passphrase and the keys that were made of it; printing and pickling show neither.

    Args:
        text: The passphrase, not empty.

    Raises:
        InputError: it is empty.
    """

    def __init__(self, text: str) -> None:
        if not text:
            raise InputError("The passphrase is empty. Give one, or none at all for a vault that is not encrypted.")
        self._text = text
        self._keys: dict[str, bytes] = {}

    def key(self, salt: bytes, cost: dict[str, int]) -> bytes:
        """Return the 32-byte key for a salt; made once, because scrypt is slow on purpose.

        Args:
            salt: 16 random bytes, not secret.
            cost: scrypt's ``n``, ``r`` and ``p``.

        Raises:
            InputError: the package `cryptography` is not installed.
        """
        index = f"{salt.hex()} {cost}"
        if index not in self._keys:
            self._keys[index] = _cryptography()[0](salt=salt, length=32, **cost).derive(self._text.encode())
        return self._keys[index]

    def __repr__(self) -> str:
        return "Passphrase()"

    def __reduce__(self) -> Any:
        raise InputError("A passphrase is not pickled. Give it again where it is needed, by `env:NAME`.")


def is_encrypted(raw: bytes) -> bool:
    """Return whether the bytes of a file are those of an encrypted vault.

    Args:
        raw: The file.
    """
    try:
        return "encrypted" in json.loads(file_metadata(raw)[ENTRY])
    except (ValueError, KeyError):
        return False


def seal(plain: bytes, passphrase: Passphrase, salt: bytes | None = None) -> bytes:
    """Return a safetensors file that holds nothing but the encrypted bytes and what opening them takes.

    Args:
        plain: What is to be encrypted.
        passphrase: The passphrase.
        salt: Of scrypt, where the key is to be used again; new if None.

    Raises:
        InputError: the package `cryptography` is not installed.
    """
    salt, nonce = salt or secrets.token_bytes(16), secrets.token_bytes(12)
    cipher = _cryptography()[1](passphrase.key(salt, _COST))
    header = {"version": VERSION, "encrypted": {"salt": salt.hex(), "nonce": nonce.hex(), "scrypt": _COST}}
    told = json.dumps(header, sort_keys=True)
    sealed = np.frombuffer(cipher.encrypt(nonce, plain, told.encode()), np.uint8)
    return save({_TENSOR: torch.from_numpy(sealed.copy())}, {ENTRY: told})


def open_sealed(raw: bytes, passphrase: Passphrase, path: Path) -> tuple[bytes, bytes]:
    """Return what was sealed, and the salt.

    Args:
        raw: The file.
        passphrase: The passphrase.
        path: The file's name, for errors.

    Raises:
        InputError: the passphrase is wrong, the file is damaged, or the package `cryptography` is not installed.
    """
    try:
        told = file_metadata(raw)[ENTRY]
        how = json.loads(told)["encrypted"]
        salt, nonce, cost = bytes.fromhex(how["salt"]), bytes.fromhex(how["nonce"]), how["scrypt"]
        if set(cost) != set(_MOST) or not all(type(v) is int and 1 <= v <= _MOST[k] for k, v in cost.items()):
            raise ValueError("cost out of range")
        sealed = load(raw)[_TENSOR].numpy().tobytes()
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as wrong:
        raise InputError(f"The encrypted vault {path} is damaged. Restore it from a copy.") from wrong
    _, aes, invalid = _cryptography()
    try:
        return aes(passphrase.key(salt, cost)).decrypt(nonce, sealed, told.encode()), salt
    except (invalid, ValueError) as wrong:
        raise InputError(f"The passphrase does not open {path}, or the file is damaged. Give the right one.") from wrong


def _cryptography() -> tuple[Any, Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidTag  # pyright: ignore[reportMissingImports]
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # pyright: ignore[reportMissingImports]
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # pyright: ignore[reportMissingImports]
    except ImportError as absent:
        raise InputError(
            "A vault with a passphrase needs the package `cryptography`. Install it: `pip install "
            "'lightning-privacy[vault]'`."
        ) from absent
    return Scrypt, AESGCM, InvalidTag
