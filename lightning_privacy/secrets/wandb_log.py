"""The records of a binary W&B run file, joined across the blocks that it is cut into."""

from collections.abc import Iterator
from typing import IO

__all__ = ["MAGIC", "records"]

MAGIC = b":W&B"
_HEADER = 7  # bytes at the start of the file, and before each piece: checksum 4, length 2, kind 1
_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the payload of each record; stop where the file does not go on as it should.

    Args:
        stream: A ``.wandb`` file at its start.

    Source:
        The log format of LevelDB (doc/log_format.md), which these files follow after a header of seven bytes.
    """
    stream.read(_HEADER)
    position, parts = _HEADER, []
    while True:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            stream.read(left)
            position += left
            continue
        header = stream.read(_HEADER)
        if len(header) < _HEADER:
            break
        length, kind = int.from_bytes(header[4:6], "little"), header[6]
        piece = stream.read(length)
        position += _HEADER + len(piece)
        if kind in (_WHOLE, _FIRST):
            parts = [piece]
        elif kind in (_MIDDLE, _LAST):
            parts.append(piece)
        else:
            break  # not this format: the raw bytes are searched as well
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
    if parts:
        yield b"".join(parts)
