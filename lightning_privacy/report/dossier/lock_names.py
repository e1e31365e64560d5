"""The attacks on locked models, in words."""

import re

__all__ = ["BY_COUNT", "lock_attack_label", "split_count"]

BY_COUNT = {
    "fine_tune": "all stolen weights fine-tuned",
    "head_tune": "the stolen model's last layer trained",
    "weight_layout": "the order read out of the first layer",
    "scratch": "the same network without the stolen weights",
}
"""Those that are run for several numbers of labelled pictures."""
_NAMES = {
    "with_key": "UP: pictures edited with the key",
    "chance": "guessing",
    "no_key": "LP: raw pictures",
    "wrong_prompt": "edited with another prompt",
    "wrong_seed": "edited with another seed",
    "empty_prompt": "edited without a prompt",
    "prompt_dictionary": "edited with the best of 70 published prompts",
    "other_editor": "edited by another editor with the right prompt",
    "mean_residual": "the mean of other pictures' edits added",
    "value_order": "the order of pixels solved from pairs",
    "block_map": "a linear edit learned from pairs",
    "pair_unlocker": "an edit learned from pairs by a network",
    "label_unlocker": "an edit learned through the model from labels",
    "score_map": "a linear map behind the model's scores",
    "distillation": "another network taught by the model",
    "strongest": "strongest attack without the key",
}
_COUNTED = re.compile(r"([a-z_]+)/(\d+)_labels")


def split_count(attack: str) -> tuple[str, int] | None:
    """Return the attack and its number of labelled pictures, from names such as ``fine_tune/64_labels``; else None.

    Example:
        >>> split_count("fine_tune/64_labels"), split_count("no_key")
        (('fine_tune', 64), None)
    """
    found = _COUNTED.fullmatch(attack)
    return None if found is None else (found[1], int(found[2]))


def lock_attack_label(attack: str) -> str:
    """Return what an attack of a lock audit does, in words; its name where that is unknown.

    Example:
        >>> lock_attack_label("head_tune/10_labels")
        "the stolen model's last layer trained, 10 labelled pictures"
    """
    counted = split_count(attack)
    if counted is not None:
        plural = "" if counted[1] == 1 else "s"
        return f"{BY_COUNT.get(counted[0], counted[0])}, {counted[1]} labelled picture{plural}"
    return _NAMES.get(attack, attack)
