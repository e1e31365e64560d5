"""The scan: does a file, a folder or an object hold any secret of a vault, in any form that we know of?"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.findings import Finding
from lightning_privacy.secrets.scan_files import scan_file, scan_object
from lightning_privacy.secrets.stream_search import Search
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["find_secrets", "unsearchable"]

_WITHHELD = "(a name that holds a secret)"
_LONGEST_NAME = 400  # characters of a place, chosen here


def find_secrets(subject: Any, vault: KeyVault | Mapping[str, Tensor | str]) -> list[Finding]:
    """Return every place where a secret lies.

    Looked for are: a tensor's numbers as little-endian bytes (double, single, half and bfloat16 precision; whole, or a
    piece of some length), as printed, hexadecimal or Base64 text, as a tensor that is equal up to its number type, and
    as rows that are multiples of it (the momentum of a lock's weights); texts in UTF-8, UTF-16, escaped, encoded, or in
    wrapped lines. Checkpoints, safetensors, NumPy, zip and gzip files and W&B run files are opened; all others are
    searched as bytes. No pickle is ever executed. What is encrypted, compressed otherwise, drawn as a picture, or
    transformed in another way is not found: no finding is no proof.

    Args:
        subject: Path of a file or folder (text or ``Path``), or an object: a state dict, a checkpoint, a module.
        vault: The secrets; or tensors and texts by name.

    Returns:
        The places, without the secrets, in order.

    Raises:
        InputError: there is nothing to look for or to look into, or a file cannot be read.

    Example:
        >>> import torch
        >>> key = torch.sin(torch.arange(40.0))
        >>> [str(found) for found in find_secrets({"state": {"row": -0.5 * key}}, {"lock/key": key})]
        ['state.row: `lock/key`, proportional rows']
    """
    search = Search(vault.secrets() if isinstance(vault, KeyVault) else vault)
    if search.empty:
        raise InputError(
            "There is no secret to look for: the vault is empty, or what it holds is constant or too short to be told from "
            "anything else. Name the vault of the run."
        )
    if not isinstance(subject, str | os.PathLike):
        return _presentable(scan_object(subject, search), search)
    own = vault.path if isinstance(vault, KeyVault) else None
    return _presentable(_scan_path(Path(subject), search, own), search)


def unsearchable(vault: KeyVault | Mapping[str, Tensor | str]) -> list[str]:
    """Return the names of secrets that `find_secrets` cannot look for: constant ones, and those that are too short.

    Args:
        vault: The secrets; or tensors and texts by name.
    """
    return sorted(Search(vault.secrets() if isinstance(vault, KeyVault) else vault).hopeless)


def _presentable(findings: Iterator[Finding], search: Search) -> list[Finding]:
    """Return findings in order; a place whose name holds a secret is not named."""

    def shown(name: str, instead: str) -> str:
        hit = next(search.in_bytes(name.encode(errors="surrogatepass")), None)
        return instead if hit else name[:_LONGEST_NAME]

    return sorted(
        {Finding(shown(f.file, _WITHHELD), shown(f.entry, _WITHHELD), f.secret, f.form) for f in findings},
    )


def _scan_path(path: Path, search: Search, own: Path | None) -> Iterator[Finding]:
    if not path.exists():
        raise InputError(f"There is no {path}. Name an existing file or folder.")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no files, so nothing was searched. Name the folder of a run, or a file.")
    for file in files:
        try:
            if own is not None and own.exists() and file.samefile(own):
                yield Finding(str(file), "the whole file", "the vault", "this is the vault itself")
                continue
            yield from scan_file(file, search)
        except OSError as wrong:
            raise InputError(
                f"{file} cannot be read ({wrong.strerror}), so it was not searched. Make it readable, or leave it out."
            ) from wrong
