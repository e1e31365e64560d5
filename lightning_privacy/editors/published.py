"""The 70 prompts of the published figure, with their accuracies with and without the key."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PublishedPrompt", "published_prompts"]


@dataclass(frozen=True)
class PublishedPrompt:
    """One bar of the figure.

    Args:
        prompt: Its name there.
        group: ``style: ...`` or ``object: ...``.
        up: Accuracy with the key, percent.
        lp: Accuracy without it, percent, good to about 0.2.
    """

    prompt: str
    group: str
    up: float
    lp: float


@functools.cache
def published_prompts() -> tuple[PublishedPrompt, ...]:
    """Return all 70: what anyone would try first.

    Example:
        >>> prompts = published_prompts()
        >>> len(prompts), prompts[3]
        (70, PublishedPrompt(prompt='Charcoal sketch', group='style: painting', up=91.96, lp=6.8))

    Source:
        README figure of the code released with arXiv 2405.16285.
    """
    path = Path(__file__).resolve().parents[1] / "assets" / "model_lock_prompts.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return tuple(PublishedPrompt(name, group, float(up), float(lp)) for name, group, up, lp in rows)
