"""Secrets in a stream of bytes, a few megabytes at a time."""

import codecs
import io
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from lightning_privacy.secrets.byte_search import ByteSearch
from lightning_privacy.secrets.number_search import holds_numbers, numbers_in
from lightning_privacy.secrets.targets import targets_of
from lightning_privacy.secrets.tensor_search import TensorSearch

__all__ = ["Readable", "Search"]

_CHUNK = 4 * 2**20
_OVERLAP = 8192  # bytes, chosen here: 65 printed numbers, and any pattern in wrapped lines
_SHORTEST_RUN = 8  # bytes: six in Base64
_CONTINUED = bytes(range(0x80, 0xC0))  # in UTF-8, what does not begin a character
_ASCII = np.isin(np.arange(256), [9, 10, 13, *range(0x20, 0x7F)])


@runtime_checkable
class Readable(Protocol):
    """Anything that gives bytes in pieces."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""
        ...


class Search:
    """All that is looked for in bytes, numbers and tensors.

    Args:
        secrets: Tensors and texts by name.
        chunk: Bytes read at a time, at least 16384.
    """

    def __init__(self, secrets: Mapping[str, Tensor | str], chunk: int = _CHUNK) -> None:
        self.targets, binary, printable, self.hopeless = targets_of(secrets)
        self.tensors = TensorSearch(self.targets)
        self._binary, self._printable = ByteSearch(binary), ByteSearch(printable)
        self._chunk = chunk
        # a pattern in lines of a few characters is longer than itself
        self._overlap = max(_OVERLAP, 2 * self._binary.longest, 2 * self._printable.longest)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look for."""
        return not (self.targets or self._binary.longest)

    def in_stream(self, stream: Readable) -> Iterator[tuple[int, str, str]]:
        """Yield offset, secret and form of what a stream holds, each secret and form once.

        Args:
            stream: Read from where it stands to its end.
        """
        seen: set[tuple[str, str]] = set()
        tail, position = b"", 0
        while part := stream.read(self._chunk):
            window = tail + part
            for offset, secret, form in self._in_window(window):
                if (secret, form) not in seen:
                    seen.add((secret, form))
                    yield position - len(tail) + offset, secret, form
            position += len(part)
            tail = window[-self._overlap :]

    def in_bytes(self, content: bytes) -> Iterator[tuple[int, str, str]]:
        """Yield offset, secret and form of what some bytes hold, each secret and form once.

        Args:
            content: The bytes.
        """
        yield from self.in_stream(io.BytesIO(content))

    def _in_window(self, window: bytes) -> Iterator[tuple[int, str, str]]:
        for offset, pattern in self._binary.find(window):
            yield offset, pattern.secret, pattern.form
        starts, texts = _printable_runs(window)
        if not texts:
            return
        joined = b"\0".join(texts)
        squeezed = joined.replace(b"\\n", b"").replace(b"\\r", b"").translate(None, b" \t\r\n")
        for offset, pattern in self._printable.find(squeezed):
            yield starts[squeezed.count(b"\0", 0, offset)], pattern.secret, pattern.form
        for name in holds_numbers(numbers_in(joined), self.targets):
            yield starts[0], name, "numbers in a text"


def _printable_runs(window: bytes) -> tuple[list[int], list[bytes]]:
    """Return where printable text stands in some bytes, and the texts; all of it where it is UTF-8 throughout."""
    begin = len(window) - len(window.lstrip(_CONTINUED))  # a character that was cut
    try:
        if b"\0" not in window:
            codecs.getincrementaldecoder("utf-8")().decode(window[begin:])
            return [begin], [window[begin:]]
    except UnicodeDecodeError:
        pass  # binary: the runs of ASCII in it
    ascii_bytes = _ASCII[np.frombuffer(window, np.uint8)]
    edges = np.flatnonzero(np.diff(ascii_bytes, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= _SHORTEST_RUN
    return starts[long].tolist(), [window[a:b] for a, b in zip(starts[long], ends[long], strict=True)]
