"""Flower's hook around a ClientApp: nothing leaves but what the server sent, and no error tells what it saw."""

import os
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Context, Message  # pyright: ignore[reportMissingImports]
from torch import Tensor

from lightning_privacy.errors import PrivacyError
from lightning_privacy.federated.deny import LeakRefusedError, SecretScan, as_tensors, refuse_unasked
from lightning_privacy.federated.private_state import private_folder

__all__ = ["ClientFailedError", "DefaultDeny"]

_OWNER = "DefaultDeny"
_NAMED = 5


class ClientFailedError(PrivacyError):
    """A client failed; why stands in its own folder, for an error's text may hold what must not leave."""


class DefaultDeny:
    """A mod that refuses to send what the server did not ask for, and what holds a secret of the client.

    A reply may hold: arrays under the names under which the server sent arrays, in the same shapes; and single numbers under
    the names in ``metrics``. Anything else is an error, and so are bytes that match a secret in the client's folder (see
    `find_secrets` for the forms that are known). An exception in the ClientApp reaches the server without its text; that
    is written to ``error.txt`` in the private folder.

    Where there are other mods, place the same one first and last among them: first it sees what really leaves, last what mods
    that add noise would hide. Flower's own mods that compare keys (``LocalDpMod``) work between the two.

    Args:
        private: The client's private folder, or a function of Flower's context that returns it.
        metrics: Names of the numbers that may be sent.
    """

    def __init__(
        self, private: str | os.PathLike[str] | Callable[[Context], str | os.PathLike[str]], metrics: Collection[str]
    ) -> None:
        self.private = private
        self.metrics = frozenset(metrics)
        self._scan = SecretScan(_OWNER)

    def __call__(self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        """Call what is inside, and look at its reply before anybody else."""
        folder = private_folder(self.private(context) if callable(self.private) else self.private)
        asked = {record: _shapes(arrays) for record, arrays in message.content.array_records.items()}
        before = _secrets(folder)
        try:
            reply = call_next(message, context)
            if reply.has_content():
                self._check(reply, asked, {f"before/{n}": v for n, v in before.items()} | _secrets(folder))
        except Exception as failure:
            if isinstance(failure, ClientFailedError):  # of the other one of these mods
                raise
            _write_error(folder, failure)
            raise ClientFailedError(
                f"The client failed ({type(failure).__name__}) and sends nothing. Why stands in `error.txt` in its private "
                "folder."
            ) from None
        return reply

    def _check(
        self, reply: Message, asked: Mapping[str, Mapping[str, tuple[int, ...]]], secrets: Mapping[str, Tensor | str]
    ) -> None:
        content = reply.content
        if others := sorted(set(content) - set(content.array_records) - set(content.metric_records)):
            raise LeakRefusedError(f"{_OWNER} refused to send {others}: a client sends arrays and numbers alone.")
        for record, arrays in content.array_records.items():
            if record not in asked:
                raise LeakRefusedError(
                    f"{_OWNER} refused to send the arrays `{record}`: the server sent {sorted(asked) or 'none'}. Reply under "
                    "the name under which they came."
                )
            refuse_unasked(_shapes(arrays), asked[record], _OWNER)
        for record, numbers in content.metric_records.items():
            wrong = sorted(k for k, v in numbers.items() if k not in self.metrics or isinstance(v, list))
            if wrong:
                raise LeakRefusedError(
                    f"{_OWNER} refused to send {wrong[:_NAMED]} in `{record}`: a client tells single numbers, and those are "
                    f"{', '.join(sorted(self.metrics))}. Name it in `metrics` if the server may know it."
                )
        self._scan.refuse(_everything(content), secrets)


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _everything(content: Any) -> dict[str, Any]:
    """Return all of a reply as it can be searched: numbers as tensors, and the bytes that are sent for them."""
    out: dict[str, Any] = {"names": [*content]}
    for record, arrays in content.array_records.items():
        out[f"{record}, as numbers"] = as_tensors({name: array.numpy() for name, array in arrays.items()})
        out[f"{record}, as bytes"] = {name: array.data for name, array in arrays.items()}
    for record, numbers in content.metric_records.items():
        out[record] = np.array([float(v) for v in numbers.values()])
    return out


def _secrets(folder: Path) -> dict[str, Tensor | str]:
    from lightning_privacy.federated.private_state import PrivateState

    return PrivateState(folder).secrets()


def _write_error(folder: Path, failure: Exception) -> None:
    file = folder / "error.txt"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        first = str(failure) if isinstance(failure, PrivacyError) else f"{type(failure).__name__}: {failure}"
        out.write(first + "\n\n" + "".join(traceback.format_exception(failure)))
