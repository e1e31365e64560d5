"""The vault: one private file of keys, other secret tensors and secret texts, each under a name."""

import copy
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.fingerprint import fingerprint_of, matches_fingerprint, tensor_bytes
from lightning_privacy.secrets.keys import site_key, zero_mean_key
from lightning_privacy.secrets.private_file import read_private, write_private
from lightning_privacy.secrets.vault_encryption import Passphrase, is_encrypted, open_sealed, seal
from lightning_privacy.secrets.vault_format import VaultContent, decode, encode, from_text, to_text

__all__ = ["KeyVault"]

_MASTER_BYTES = 32  # 256 bits, the strength of HKDF with SHA-256


class KeyVault:
    """A safetensors file, mode 0600, of named secrets: tensors, keys and texts; encrypted where a passphrase is given.

    Every change is written at once and whole. The file is read when it is needed, and refused if others may read it.
    Several processes may read it; one at a time may write. Printing, pickling and errors show its path alone; a pickle
    carries neither content nor passphrase.

    Args:
        path: The file; `create` makes it.
        passphrase: A text, or better a `SecretRef` such as ``env:NAME``. Where it is absent and the vault is encrypted,
            the environment variable ``LIGHTNING_PRIVACY_PASSPHRASE`` is used.

    Example:
        >>> import tempfile
        >>> vault = KeyVault.create(Path(tempfile.mkdtemp()) / "keys.safetensors")
        >>> vault.put_key("lock/key", 64)
        >>> vault.names(), vault.tensor("lock/key").abs().sum().item()
        (['lock/key'], 64.0)
    """

    def __init__(self, path: str | Path, passphrase: str | None = None) -> None:
        self.path = Path(path)
        self._passphrase = _passphrase(passphrase)
        self._salt: bytes | None = None
        self._content: VaultContent | None = None
        self._stamp: tuple[int, ...] = ()

    @classmethod
    def create(cls, path: str | Path, passphrase: str | None = None) -> "KeyVault":
        """Write an empty vault and return it.

        Args:
            path: The new file; its folder must exist.
            passphrase: Encrypts it, if given; needs the package `cryptography`.

        Raises:
            InputError: there is a file already, or it cannot be written.
        """
        vault = cls(path, passphrase)
        if vault.path.exists():
            raise InputError(
                f"{vault.path} exists; it was left as it is. Open it with KeyVault(path), or name another file."
            )
        vault._write(VaultContent(secrets.token_bytes(16)))
        return vault

    # --- reading -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all entries."""
        return sorted(self._read().tensors)

    def kind(self, name: str) -> str:
        """Return what an entry is: ``key``, ``master``, ``site``, ``tensor``, ``text``, or ``note`` (private, no secret)."""
        return self._fact(name)["kind"]

    def tensor(self, name: str) -> Tensor:
        """Return a copy of a secret tensor.

        Raises:
            InputError: there is none of that name, or it is a text.
        """
        if self.kind(name) in ("text", "note"):
            raise InputError(f"`{name}` in {self.path} is a text. Read it with `text`.")
        return self._read().tensors[name].clone()

    def text(self, name: str) -> str:
        """Return a secret text.

        Raises:
            InputError: there is none of that name, or it is a tensor.
        """
        if self.kind(name) not in ("text", "note"):
            raise InputError(f"`{name}` in {self.path} is a tensor. Read it with `tensor`.")
        return to_text(self._read().tensors[name])

    def secrets(self) -> dict[str, Tensor | str]:
        """Return every secret by name, for a scan; notes are left out."""
        kinds = {name: self.kind(name) for name in self.names()}
        return {n: self.text(n) if k == "text" else self.tensor(n) for n, k in kinds.items() if k != "note"}

    def fingerprint(self, name: str) -> str:
        """Return a secret's salted SHA-256: the same until the secret changes, fit to be published."""
        return fingerprint_of(self._value(name), self._read().salt)

    def matches(self, name: str, fingerprint: str) -> bool:
        """Return whether a published fingerprint, of this or another vault, is that of a secret here."""
        return matches_fingerprint(self._value(name), fingerprint)

    def site_key(self, master: str, site: str, size: int, distribution: str = "rademacher") -> Tensor:
        """Return the key of a site, derived from a master key here by HKDF; `put_site_key` keeps it as well.

        A key that is derived but not kept is not known to `find_secrets`.

        Args:
            master: Name of a master key.
            site: What the key is for, such as a layer's name.
            size: Number of entries.
            distribution: ``rademacher`` or ``normal``.
        """
        if self.kind(master) != "master":
            raise InputError(f"`{master}` in {self.path} is no master key. Make one with `put_master`.")
        return site_key(tensor_bytes(self.tensor(master)), site, size, distribution)

    # --- writing -------------------------------------------------------------------------------------------------

    def put(self, name: str, value: Tensor | str, *, replace: bool = False) -> None:
        """Keep a secret tensor or text.

        Args:
            name: Any text without ``#``.
            value: The secret; a tensor is copied to the CPU.
            replace: Whether it may take the place of another.

        Raises:
            InputError: the name is taken or unfit, or the text is empty.
        """
        self.put_all({name: value}, replace=replace)

    def put_all(
        self,
        values: Mapping[str, Tensor | str],
        notes: Mapping[str, str] | None = None,
        *,
        replace: bool = False,
        forget: Iterable[str] = (),
    ) -> None:
        """Keep several entries in one write, as `put` does.

        Args:
            values: Secret tensors or texts by name.
            notes: Texts that are private without being secrets to look for (a layout, say), by name.
            replace: Whether they may take the place of others.
            forget: Names of entries that go in the same write, where there are such.
        """
        kept = {n: (v, {"kind": "text" if isinstance(v, str) else "tensor"}) for n, v in values.items()}
        self._keep(kept | {n: (v, {"kind": "note"}) for n, v in (notes or {}).items()}, replace, forget)

    def put_key(self, name: str, size: int, distribution: str = "rademacher", *, replace: bool = False) -> None:
        """Draw a new key of mean zero and keep it.

        Args:
            name: Of the key.
            size: Number of entries.
            distribution: ``rademacher`` or ``normal``.
            replace: Whether it may take the place of another.
        """
        fact = {"kind": "key", "distribution": distribution}
        self._keep({name: (zero_mean_key(size, distribution), fact)}, replace)

    def put_master(self, name: str, *, replace: bool = False) -> None:
        """Draw a master key of 32 bytes and keep it.

        Args:
            name: Of the key.
            replace: Whether it may take the place of another.
        """
        self._keep({name: (_master(), {"kind": "master"})}, replace)

    def put_site_key(
        self,
        name: str,
        master: str,
        site: str,
        size: int,
        distribution: str = "rademacher",
        *,
        replace: bool = False,
    ) -> Tensor:
        """Derive the key of a site, keep it, and return it; `rotate` of its master renews it.

        Args:
            name: Of the new entry.
            master: Name of a master key.
            site: What the key is for.
            size: Number of entries.
            distribution: ``rademacher`` or ``normal``.
            replace: Whether it may take the place of another.
        """
        key = self.site_key(master, site, size, distribution)
        fact = {"kind": "site", "master": master, "site": site, "distribution": distribution}
        self._keep({name: (key, fact)}, replace)
        return key

    def remove(self, name: str) -> None:
        """Forget an entry.

        Raises:
            InputError: there is none of that name, or keys were derived from it.
        """
        self._fact(name)
        content = copy.copy(self._read())
        if derived := [n for n, f in content.facts.items() if f.get("master") == name]:
            raise InputError(f"{derived} in {self.path} were derived from `{name}`. Remove them first.")
        content.tensors = {n: v for n, v in content.tensors.items() if n != name}
        content.facts = {n: f for n, f in content.facts.items() if n != name}
        self._write(content)

    def rotate(self, name: str, new: Tensor | str | None = None) -> str:
        """Replace a secret, and every key derived from it; the old one is gone.

        Args:
            name: The entry.
            new: The new secret, of the same kind; drawn anew if None, where the vault drew the old one.

        Returns:
            The new fingerprint.

        Raises:
            InputError: there is no such entry, or the vault cannot draw one of its kind.
        """
        fact, old = self._fact(name), self._value(name)
        if new is None:
            new = _redrawn(name, fact, old)
        if isinstance(new, str) != isinstance(old, str):
            raise InputError(f"`{name}` in {self.path} is a {'text' if isinstance(old, str) else 'tensor'}; give one.")
        changed: dict[str, tuple[Tensor | str, dict[str, Any]]] = {name: (new, fact)}
        for derived, told in self._read().facts.items():
            if told.get("master") == name and isinstance(new, Tensor):
                size = self._read().tensors[derived].numel()
                changed[derived] = (site_key(tensor_bytes(new), told["site"], size, told["distribution"]), told)
        self._keep(changed, replace=True)
        return self.fingerprint(name)

    def rotate_passphrase(self, new: str | None) -> None:
        """Encrypt the vault under another passphrase, or under none.

        Args:
            new: The new passphrase or a `SecretRef`; None writes the vault unencrypted.
        """
        content = self._read()
        self._passphrase, self._salt = _passphrase(new), None
        self._write(content)

    # --- the file ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"KeyVault({str(self.path)!r})"

    def __reduce__(self) -> tuple[Callable[..., "KeyVault"], tuple[str]]:
        return KeyVault, (str(self.path),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeyVault":
        return copy.copy(self)

    def __copy__(self) -> "KeyVault":
        twin = KeyVault(self.path)
        twin._passphrase = self._passphrase
        return twin

    def _read(self) -> VaultContent:
        stamp = _stamp(self.path)
        if self._content is None or stamp != self._stamp or not stamp:
            raw = read_private(self.path)
            if is_encrypted(raw):
                raw, self._salt = open_sealed(raw, self._need_passphrase(), self.path)
            self._content, self._stamp = decode(raw, self.path), stamp
        return self._content

    def _write(self, content: VaultContent) -> None:
        raw = encode(content)
        if self._passphrase is not None:
            raw = seal(raw, self._passphrase, self._salt)
        write_private(self.path, raw)
        self._content = None

    def _keep(
        self, values: Mapping[str, tuple[Tensor | str, dict[str, Any]]], replace: bool, forget: Iterable[str] = ()
    ) -> None:
        content, gone = self._read(), set(forget)
        tensors = {n: v for n, v in content.tensors.items() if n not in gone}
        facts = {n: f for n, f in content.facts.items() if n not in gone}
        for name, (value, fact) in values.items():
            if not name or "#" in name or name == "__metadata__":
                raise InputError(f"`{name}` is no name for an entry of a vault. Use any text without `#`.")
            if name in tensors and not replace:
                raise InputError(
                    f"{self.path} holds a `{name}` already. Replace it with `replace=True`, or `rotate` it."
                )
            if isinstance(value, str) and not value:
                raise InputError(f"The text for `{name}` is empty, which is no secret. Give one.")
            tensors[name] = from_text(value) if isinstance(value, str) else value
            facts[name] = dict(fact)
        self._write(VaultContent(content.salt, tensors, facts))

    def _fact(self, name: str) -> dict[str, Any]:
        facts = self._read().facts
        if name not in facts:
            raise InputError(f"{self.path} holds no `{name}`. It has: {', '.join(sorted(facts)) or 'nothing'}.")
        return facts[name]

    def _value(self, name: str) -> Tensor | str:
        return self.text(name) if self.kind(name) in ("text", "note") else self.tensor(name)

    def _need_passphrase(self) -> Passphrase:
        if self._passphrase is None:
            self._passphrase = _passphrase_of_environment(self.path)
        return self._passphrase


def _redrawn(name: str, fact: Mapping[str, Any], old: Tensor | str) -> Tensor:
    if fact["kind"] == "master":
        return _master()
    if fact["kind"] == "key" and isinstance(old, Tensor):
        return zero_mean_key(old.numel(), fact["distribution"])
    how = f"rotate its master `{fact['master']}`" if fact["kind"] == "site" else "give the new one (`new=...`)"
    raise InputError(f"`{name}` was not drawn by the vault, which cannot draw another: {how}.")


def _master() -> Tensor:
    return torch.from_numpy(np.frombuffer(secrets.token_bytes(_MASTER_BYTES), np.uint8).copy())


def _passphrase(given: str | None) -> Passphrase | None:
    from lightning_privacy.secrets.secret_ref import SecretRef

    if given is None:
        return None
    return Passphrase(given.resolve_text() if isinstance(given, SecretRef) else given)


def _passphrase_of_environment(path: Path) -> Passphrase:
    from lightning_privacy.secrets.secret_ref import PASSPHRASE, SecretRef

    try:
        return Passphrase(SecretRef(f"env:{PASSPHRASE}").resolve_text())
    except InputError as absent:
        raise InputError(
            f"{path} is encrypted. Give its passphrase: `KeyVault(path, SecretRef('env:NAME'))`, or set the environment "
            f"variable {PASSPHRASE}."
        ) from absent


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        told = path.stat()
    except OSError:
        return ()  # reading it says why
    return told.st_mtime_ns, told.st_size, told.st_ino, told.st_mode
