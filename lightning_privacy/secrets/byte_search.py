"""Many byte patterns at once: the time a scan takes does not grow with their number."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_privacy.secrets.targets import Pattern

__all__ = ["ByteSearch"]

_WORD = 8
_TABLE_BITS = 12, 22  # at least (one page) and at most (4 MiB)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth, The Art of Computer Programming, 6.4
_DISTINCT = 5  # bytes of 8 that differ, chosen here: words such as those of 1.0, 1.0 stand everywhere


class ByteSearch:
    """Finds patterns in chunks of bytes.

    Every pattern is known by one word of eight bytes in it. All words of a chunk, at every offset, are looked up in a
    table; what passes is compared in full. Patterns without a telling word are searched for one by one.

    Args:
        patterns: What to find.

    Example:
        >>> search = ByteSearch([Pattern("key", "text", b"open sesame")])
        >>> [(offset, pattern.secret) for offset, pattern in search.find(b"say open sesame, please")]
        [(4, 'key')]
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.longest = max((len(p.content) for p in patterns), default=0)
        self._plain: list[Pattern] = []
        self._by_word: dict[int, list[tuple[int, Pattern]]] = {}
        for pattern in dict.fromkeys(patterns):
            anchor = _telling_word(pattern.content)
            if anchor is None:
                self._plain.append(pattern)
            else:
                word = int.from_bytes(pattern.content[anchor : anchor + _WORD], "little")
                self._by_word.setdefault(word, []).append((anchor, pattern))
        self._words = np.array(sorted(self._by_word), np.uint64)
        # 64 places a word: few pass by chance, and the table of a few secrets stays in the processor's cache
        self._bits = int(np.clip(len(self._words).bit_length() + 6, *_TABLE_BITS))
        self._table = np.zeros(1 << self._bits, bool)
        self._table[_hashed(self._words, self._bits)] = True

    def find(self, chunk: bytes) -> Iterator[tuple[int, Pattern]]:
        """Yield offset and pattern of every match; of a pattern without a telling word only the first.

        Args:
            chunk: Bytes.
        """
        for pattern in self._plain:
            if (offset := chunk.find(pattern.content)) >= 0:
                yield offset, pattern
        if not len(self._words):
            return
        for shift in range(min(_WORD, max(len(chunk) - _WORD + 1, 0))):
            words = np.frombuffer(chunk, "<u8", (len(chunk) - shift) // _WORD, shift)
            candidates = np.flatnonzero(self._table[_hashed(words, self._bits)])
            known = words[candidates]
            place = np.minimum(np.searchsorted(self._words, known), len(self._words) - 1)
            for i in candidates[self._words[place] == known]:
                for anchor, pattern in self._by_word[int(words[i])]:
                    start = int(i) * _WORD + shift - anchor
                    if start >= 0 and chunk.startswith(pattern.content, start):
                        yield start, pattern


def _hashed(words: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    return ((words * _MULTIPLIER) >> np.uint64(64 - bits)).astype(np.int64)


def _telling_word(content: bytes) -> int | None:
    """Return the offset of the eight bytes with the most distinct values, or None where all are plain."""
    offsets = range(0, min(len(content) - _WORD + 1, 16), 4)
    best = max(offsets, key=lambda i: len(set(content[i : i + _WORD])), default=None)
    return best if best is not None and len(set(content[best : best + _WORD])) >= _DISTINCT else None
