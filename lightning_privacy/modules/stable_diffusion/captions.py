"""Random changes to captions, each a function of (seed, step, record)."""

import random
from collections.abc import Sequence

from lightning_privacy.core.randomness import derive_seed

__all__ = ["shuffle_tags", "vary_captions"]


def shuffle_tags(caption: str, generator: random.Random, keep: int = 1) -> str:
    """Shuffle the comma-separated tags of a caption, but leave the first ones in place.

    Args:
        caption: Tags between commas.
        generator: Source of randomness.
        keep: How many tags stay in front (the subject, by convention).

    Example:
        >>> shuffle_tags("a cat, red, blue, big", random.Random(0))
        'a cat, red, big, blue'
    """
    tags = [tag.strip() for tag in caption.split(",")]
    rest = tags[keep:]
    generator.shuffle(rest)
    return ", ".join(tags[:keep] + rest)


def vary_captions(
    captions: Sequence[str], records: Sequence[int], seed: int, step: int, dropout: float | int, shuffle: bool
) -> list[str]:
    """Drop whole captions and shuffle their tags.

    Args:
        captions: Captions of the batch.
        records: Identity of each record (positions in the batch where there is none).
        seed: The run's seed.
        step: The optimizer step.
        dropout: Probability of an empty caption, which trains the unconditional branch of guidance
            (arXiv 2207.12598 takes 0.1 to 0.2).
        shuffle: Whether tags are shuffled.
    """
    varied = []
    for caption, record in zip(captions, records, strict=True):
        generator = random.Random(derive_seed(seed, "caption", step, record))
        # The dropout number is drawn first, always: switching the shuffle on does not change which captions drop.
        dropped = generator.random() < dropout
        varied.append("" if dropped else shuffle_tags(caption, generator) if shuffle else caption)
    return varied
