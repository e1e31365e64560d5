"""Default deny: what leaves a client is what the server sent, under the same names, and holds no secret."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_privacy.errors import InputError, PrivacyError
from lightning_privacy.secrets.fingerprint import tensor_bytes
from lightning_privacy.secrets.scan_files import scan_object
from lightning_privacy.secrets.stream_search import Search

__all__ = ["LeakRefusedError", "SecretScan", "as_tensors", "refuse_unasked"]

_NAMED = 5  # names in an error, chosen here


class LeakRefusedError(PrivacyError):
    """Something that must stay with the client was about to leave; nothing was sent."""


def refuse_unasked(sent: Mapping[str, Sequence[int]], asked: Mapping[str, Sequence[int]], owner: str) -> None:
    """Refuse to send any tensor that the server did not send first, or one of another shape.

    Args:
        sent: Shapes of what is about to leave, by name.
        asked: Shapes of what the server sent, by name.
        owner: Who refuses, for the error.

    Raises:
        LeakRefusedError: there is such a tensor; the message holds names alone.

    Example:
        >>> refuse_unasked({"head.weight": (2, 3)}, {"head.weight": (2, 3), "head.bias": (2,)}, "example")
    """
    if unknown := sorted(set(sent) - set(asked)):
        raise LeakRefusedError(
            f"{owner} refused to send {_some(unknown)}: the server did not send tensors of that name, and what it did not send "
            "stays here. Send what `shared_names` returns, no more."
        )
    if other := sorted(name for name, shape in sent.items() if tuple(shape) != tuple(asked[name])):
        raise LeakRefusedError(
            f"{owner} refused to send {_some(other)}: the server sent tensors of these names in other shapes. Build the "
            "server's model as the clients'."
        )


class SecretScan:
    """Looks for known secrets in what is about to leave; the search for the same secrets is prepared once.

    What is encrypted, compressed, noised or otherwise transformed is not found; see `find_secrets` for the forms that are.

    Args:
        owner: Who refuses, for errors.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._prepared: tuple[bytes, Search] | None = None

    def refuse(self, subject: Any, secrets: Mapping[str, Tensor | str]) -> None:
        """Refuse to send anything that holds a secret.

        Args:
            subject: What is about to leave: containers of tensors, arrays, numbers, texts and bytes.
            secrets: By name; those that are constant or too short cannot be looked for.

        Raises:
            LeakRefusedError: a secret was found; the message says which and where, never its value.

        Example:
            >>> key = torch.sin(torch.arange(40.0))
            >>> SecretScan("example").refuse({"arrays": {"conv.weight": torch.ones(3)}}, {"lock/key": key})
        """
        if found := [str(each) for each in scan_object(subject, self._search(secrets))]:
            raise LeakRefusedError(
                f"{self.owner} refused to send what holds a secret: {_some(found)}. Nothing was sent. Find what put it there; "
                "`shared_state_dict` has no entry for any secret."
            )

    def _search(self, secrets: Mapping[str, Tensor | str]) -> Search:
        digest = hashlib.sha256()
        different: dict[bytes, tuple[str, Tensor | str]] = {}
        for name in sorted(secrets):
            value = secrets[name]
            content = value.encode() if isinstance(value, str) else f"{value.dtype}".encode() + tensor_bytes(value)
            if content not in different:  # what a round has not changed is looked for once
                different[content] = (name, value)
                digest.update(f"{name} {len(content)} ".encode() + content)
        if self._prepared is None or self._prepared[0] != digest.digest():
            self._prepared = digest.digest(), Search(dict(different.values()))
        return self._prepared[1]


def as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return NumPy arrays as tensors that share their memory; tensors stay as they are.

    Args:
        arrays: By name.

    Raises:
        InputError: one is neither.
    """
    out: dict[str, Tensor] = {}
    for name, value in arrays.items():
        try:
            out[name] = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as wrong:
            raise InputError(f"`{name}` is a {type(value).__name__}, of which no tensor can be made.") from wrong
    return out


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
