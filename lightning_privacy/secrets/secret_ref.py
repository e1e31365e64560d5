"""How a configuration names a secret: where it lies, never what it is."""

import os
import re
from pathlib import Path
from typing import Any

from jsonargparse.typing import register_type
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["PASSPHRASE", "SecretRef"]

PASSPHRASE = "LIGHTNING_PRIVACY_PASSPHRASE"
"""Environment variable with the passphrase of encrypted vaults."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFUSED = "refused:not-a-reference"
_FORMS = "`vault:PATH#NAME` (an entry of a KeyVault) or `env:NAME` (an environment variable)"


class SecretRef(str):
    """The place of a secret: ``vault:PATH#NAME`` or ``env:NAME``.

    It is a text, so that it stands in YAML files, dumps, hyper-parameters and manifests as it was written; the secret is
    read when `resolve` is called and is not kept. A configuration that holds anything else in its place is refused
    without being repeated: what was meant as a reference may be the secret itself.

    Args:
        text: The reference.

    Raises:
        InputError: the text is neither form.

    Example:
        >>> ref = SecretRef("vault:runs/keys.safetensors#lock/key")
        >>> ref.entry, ref
        ('lock/key', SecretRef('vault:runs/keys.safetensors#lock/key'))
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "SecretRef":
        """Check the text."""
        if not _is_reference(text) and text != _REFUSED:
            raise InputError(f"This is no reference to a secret (its text is not repeated here). Give {_FORMS}.")
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: Any) -> "SecretRef":
        """Return the reference of a configuration's value; what is none becomes one that `resolve` refuses.

        An error here would be printed by the command line together with the value.

        Args:
            text: What stands in the configuration.
        """
        return cls(text) if isinstance(text, str) and _is_reference(text) else cls(_REFUSED)

    @property
    def vault_path(self) -> Path | None:
        """The vault's file; None for an environment variable."""
        return Path(self._rest().rpartition("#")[0]).expanduser() if self.startswith("vault:") else None

    @property
    def entry(self) -> str:
        """The name of the vault's entry, or of the environment variable."""
        return self._rest().rpartition("#")[2]

    def resolve(self, passphrase: str | None = None) -> Tensor | str:
        """Return the secret.

        Args:
            passphrase: Of an encrypted vault, or a `SecretRef` to it; ``LIGHTNING_PRIVACY_PASSPHRASE`` if None.

        Raises:
            InputError: the place is absent or empty, or the configuration held no reference.
        """
        if self == _REFUSED:
            raise InputError(f"A secret was written into the configuration where its place belongs. Give {_FORMS}.")
        path = self.vault_path
        if path is None:
            value = os.environ.get(self.entry, "")
            if not value:
                raise InputError(
                    f"The environment variable {self.entry} is not set, or is empty. Set it, or use a vault."
                )
            return value
        from lightning_privacy.secrets.vault import KeyVault

        vault = KeyVault(path, passphrase)
        return vault.text(self.entry) if vault.kind(self.entry) in ("text", "note") else vault.tensor(self.entry)

    def resolve_text(self) -> str:
        """Return the secret where it must be a text.

        Raises:
            InputError: it is a tensor, or `resolve` refuses.
        """
        value = self.resolve()
        if not isinstance(value, str):
            raise InputError(f"{self} is a tensor, and a text is needed. Name a text.")
        return value

    def __repr__(self) -> str:
        return f"SecretRef({str.__repr__(self)})"

    def _rest(self) -> str:
        return str(self).partition(":")[2]


def _is_reference(text: str) -> bool:
    kind, _, rest = text.partition(":")
    if kind == "env":
        return _VARIABLE.fullmatch(rest) is not None
    path, _, name = rest.rpartition("#")
    return kind == "vault" and bool(path) and bool(name)


register_type(SecretRef, serializer=str.__str__, deserializer=SecretRef.parse)
