"""A CLIP tokenizer with a vocabulary of a few hundred entries, built offline from a handful of captions."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["build_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


def _merges(captions: Sequence[str], limit: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges under the splitting rules of `CLIPTokenizer` itself."""
    reference = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([reference.normalizer])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([reference.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=limit,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # The trainer breaks ties by what it meets first: sorted captions make the vocabulary a function of their set.
    bpe.train_from_iterator(sorted(set(captions)), trainer)
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def build_tokenizer(
    captions: Sequence[str], model_max_length: int = 24, folder: Path | str | None = None, vocab_size: int = 1024
) -> CLIPTokenizer:
    """Build a CLIP tokenizer whose merges come from ``captions`` and which knows every byte, hence every text.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, then the two special tokens.

    Args:
        captions: Texts whose words should become single tokens.
        model_max_length: Tokens of a padded prompt, the start and end tokens included (77 in CLIP itself).
        folder: Where to save the tokenizer; not saved if None.
        vocab_size: Upper bound of the vocabulary; it ends up smaller where the captions have fewer merges.

    Returns:
        The tokenizer; padding and unknown token are the end token, as in Stable Diffusion v1.

    Example:
        >>> tokenizer = build_tokenizer(["a photo of person"])
        >>> tokenizer.tokenize("A photo of person 21")
        ['a</w>', 'photo</w>', 'of</w>', 'person</w>', '2</w>', '1</w>']
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(captions, limit=vocab_size - len(letters) - 2)
    tokens = list(dict.fromkeys([*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges), START, END]))
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # pyright: ignore[reportArgumentType]  # pairs are what tokenizers' BPE takes
        model_max_length=model_max_length,
    )
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer
