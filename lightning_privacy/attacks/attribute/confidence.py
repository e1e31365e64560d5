"""Attribute inference from a classifier that reads the attribute: which value makes it sure of the true class?"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.errors import InputError

__all__ = ["ScoresWith", "confidence_inference"]

ScoresWith = Callable[[int], Float[Tensor, "records classes"]]
"""Returns the class scores of all records with the sensitive attribute set to a value: logits, or log probabilities."""


def confidence_inference(
    scores_with: ScoresWith,
    candidates: Sequence[int],
    labels: Int[Tensor, " records"],
    log_prior: Float[Tensor, "records candidates"] | None = None,
) -> Int[Tensor, " records"]:
    """Return the candidate value under which the model is surest of each record's true class.

    The attacker knows everything of a record but the sensitive attribute, and queries the model once a value. Among
    values that tie (a model that does not read the attribute) the first candidate is taken: put the most frequent one
    first. With ``log_prior`` the choice is that of the largest log prior + log p_y.

    Args:
        scores_with: The model; called once a candidate.
        candidates: Values that the attribute can have, at least two, each once.
        labels: True classes.
        log_prior: What the attacker thinks of the values without the class, such as
            `AttributeModel.log_probabilities` of an imputation that does not read it; the model adds the class.

    Returns:
        The inferred values.

    Raises:
        InputError: fewer than two candidates, one twice, or scores that are not finite.

    Example:
        >>> scores = {7: torch.tensor([[0.0, 1.0]]), 8: torch.tensor([[0.0, 3.0]])}
        >>> confidence_inference(scores.__getitem__, [7, 8], torch.tensor([1])).tolist()
        [8]

    Source:
        arXiv 1806.01246 (attributes from confidence), arXiv 2012.03404 (the confidence-score attack).
    """
    if len(candidates) < 2 or len(set(candidates)) != len(candidates):
        raise InputError(f"The candidates {list(candidates)} are not two or more different values.")
    confidence = []
    with torch.no_grad():
        for value in candidates:
            scores = scores_with(value)
            if scores.shape[0] != len(labels) or not scores.isfinite().all():
                raise InputError(
                    f"With the attribute set to {value} the model gave {scores.shape[0]} rows of scores for "
                    f"{len(labels)} records, or scores that are not finite; give logits, one row a record."
                )
            confidence.append(scaled_confidence(scores.unsqueeze(1), labels).squeeze(1))
    surest = torch.stack(confidence, 1)
    if log_prior is not None:
        surest = log_prior + torch.nn.functional.logsigmoid(surest)
    return torch.as_tensor(list(candidates), device=labels.device)[surest.argmax(1)]
