"""The key of a locked model: a public part that may be told, and a secret part that may not."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.errors import InputError, WrongKeyError

__all__ = ["LockKey", "LockSecret", "check_same_key"]

_ROUNDS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256: a prompt can be guessed
_STRONG = 16  # bytes of a random seed, from which on nobody guesses
_SALT = b"lightning_privacy lock key 1"


@dataclass(frozen=True)
class LockSecret:
    """What must not be told: printing shows nothing, and it cannot be pickled.

    Args:
        prompt: Text for editors that read one.
        seed: A number as in published scripts, or random bytes.

    Example:
        >>> LockSecret("with oil pastel", 1024)
        LockSecret(...)
    """

    prompt: str | None = field(default=None, repr=False)
    seed: int | bytes = field(default=b"", repr=False)

    def seed_bytes(self) -> bytes:
        """Return the seed as bytes."""
        return self.seed if isinstance(self.seed, bytes) else f"number {self.seed}".encode()

    def seed_number(self, *site: str | bytes) -> int:
        """Return a seed of torch: a number as it stands, else 63 bits derived from seed and site.

        Args:
            *site: What it is for; given, a number is derived from as well.
        """
        if isinstance(self.seed, int) and not site:
            return self.seed
        message = b"".join(len(s).to_bytes(8, "big") + s for s in (_bytes(each) for each in site))
        return int.from_bytes(hmac.new(self.seed_bytes(), message, hashlib.sha256).digest()[:8], "big") >> 1

    def numbers(self, site: str, count: int) -> Int[Tensor, " count"]:
        """Return uniform 63-bit whole numbers for one purpose, the same on every machine.

        Args:
            site: The purpose.
            count: How many.

        Source:
            SHAKE-256 of the key in front of the purpose (FIPS 202); a sponge needs no HMAC.
        """
        key = self.seed_bytes()
        stream = hashlib.shake_256(len(key).to_bytes(8, "big") + key + site.encode()).digest(8 * count)
        return torch.from_numpy((np.frombuffer(stream, "<u8") >> 1).astype(np.int64))

    def __repr__(self) -> str:
        return "LockSecret(...)"

    def __reduce__(self) -> NoReturn:
        raise InputError("The secret of a lock cannot be pickled. Name its vault where it is needed again.")

    def __copy__(self) -> "LockSecret":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "LockSecret":
        return self


@dataclass(frozen=True)
class LockKey:
    """All that an edit depends on.

    Args:
        editor: Registered name of the editor.
        settings: Its public settings, plain values: model, steps, blend ratio, ...
        secret: Prompt and seed.

    Example:
        >>> key = LockKey("pixel_shuffle", {"block": 4}, LockSecret(seed=bytes(range(32))))
        >>> key.fingerprint()[:12], key.public()
        ('2845aa077948', {'editor': 'pixel_shuffle', 'block': 4})
    """

    editor: str
    settings: Mapping[str, Any]
    secret: LockSecret = field(repr=False)

    def public(self) -> dict[str, Any]:
        """Return the public part."""
        return {"editor": self.editor, **self.settings}

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON of the whole key.

        With a seed that can be guessed (a number, a short text) it is hashed 600 000 times before, which slows guessing the
        prompt down and does not prevent it: a random seed of 16 bytes does.
        """
        seed = self.secret.seed
        told = {"prompt": self.secret.prompt, "seed": seed if isinstance(seed, int) else seed.hex()}
        whole = {"version": 1, "public": self.public(), "secret": told}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        weak = isinstance(seed, int) or len(seed) < _STRONG
        material = hashlib.pbkdf2_hmac("sha256", text, _SALT, _ROUNDS) if weak else _SALT + text
        return hashlib.sha256(material).hexdigest()


def check_same_key(
    saved: Mapping[str, Any], saved_mark: str, here: Mapping[str, Any], here_mark: str, what: str
) -> None:
    """Refuse another key than the one that a model was locked with; secrets are not shown.

    Args:
        saved: Public part of the model's key.
        saved_mark: Its fingerprint.
        here: Public part of the present one.
        here_mark: Its fingerprint.
        what: Whose model it is, to begin the sentence with.

    Raises:
        WrongKeyError: they differ; it names the public settings that do.
    """
    if saved_mark == here_mark:
        return
    differ = [k for k in {**saved, **here} if saved.get(k) != here.get(k)]
    if differ and saved:
        told = " and ".join(f"`{k}` {saved.get(k)}" for k in differ)
        have = " and ".join(f"{here.get(k)}" for k in differ)
        raise WrongKeyError(f"{what} was locked with {told}, and this editor has {have}. Give the editor that setting.")
    raise WrongKeyError(
        f"{what} was locked with another secret (fingerprint {saved_mark[:12]}, this key's is {here_mark[:12]}): prompt or "
        "seed differ. Name the vault and the entry that the model was locked with."
    )


def _bytes(part: str | bytes) -> bytes:
    return part.encode() if isinstance(part, str) else part
