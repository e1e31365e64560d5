"""A CLIP tokenizer with a vocabulary of a few hundred entries, built offline from a handful of captions."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

__all__ = ["build_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


def _merges(captions: Sequence[str], limit: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges (arXiv 1508.07909) under the splitting rules of `CLIPTokenizer` itself.

    The trainer of the tokenizers library breaks ties differently from run to run; here the most frequent pair wins,
    and among equals the first in alphabetical order.
    """
    rules = CLIPTokenizer().backend_tokenizer
    counts: Counter[str] = Counter()
    for caption in sorted(set(captions)):
        counts.update(w for w, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(caption)))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {word: _merged(parts, merges[-1]) for word, parts in words.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        # A piece just made is longer than either half, so it cannot be taken for the first half again.
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def build_tokenizer(
    captions: Sequence[str], model_max_length: int = 24, folder: Path | str | None = None, vocab_size: int = 1024
) -> CLIPTokenizer:
    """Build a CLIP tokenizer whose merges come from ``captions`` and which knows every byte, hence every text.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, then the two special tokens.

    Args:
        captions: Texts whose words should become single tokens.
        model_max_length: Tokens of a padded prompt, the start and end tokens included (77 in CLIP itself).
        folder: Where to save the tokenizer; not saved if None.
        vocab_size: Upper bound of the vocabulary, at least 514; smaller where the captions have fewer merges.

    Returns:
        The tokenizer; padding and unknown token are the end token, as in Stable Diffusion v1.

    Example:
        >>> tokenizer = build_tokenizer(["a photo of person"])
        >>> tokenizer.tokenize("A photo of person 21")
        ['a</w>', 'photo</w>', 'of</w>', 'person</w>', '2</w>', '1</w>']
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(captions, limit=vocab_size - 2 * len(letters) - 2)
    tokens = list(dict.fromkeys([*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges), START, END]))
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # pyright: ignore[reportArgumentType]  # pairs are what tokenizers' BPE takes
        model_max_length=model_max_length,
    )
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer
