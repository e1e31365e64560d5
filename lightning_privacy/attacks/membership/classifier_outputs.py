"""Reading a classifier's answers from `Signals`, checked once for every attack on classifiers."""

from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["classifier_outputs", "mean_confidence"]


def classifier_outputs(
    signals: Signals, attack: str
) -> tuple[Float[Tensor, "records queries classes"], Int[Tensor, " records"]]:
    """Return the class scores in float64 and the true classes.

    Args:
        signals: What was observed of the records.
        attack: Who asks, for the error.

    Raises:
        InputError: one of them was not observed, a score is not finite, there is one class only, or a label is none of
            the classes.
    """
    logits, labels = observed(signals, "logits", attack).double(), observed(signals, "labels", attack)
    classes = logits.shape[2]
    if classes < 2:
        raise InputError(f"The attack `{attack}` needs a classifier of at least 2 classes, not {classes}.")
    if not logits.isfinite().all():
        raise InputError(
            f"The attack `{attack}` was given class scores that are not finite; give the scores before the softmax, and "
            "look for NaN in the audited model."
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InputError(
            f"The attack `{attack}` was given labels from {int(labels.min())} to {int(labels.max())}, but the model has "
            f"the classes 0 to {classes - 1}; number the labels as the model's outputs are."
        )
    return logits, labels.long()


def mean_confidence(signals: Signals, attack: str) -> Float[Tensor, " records"]:
    """Return the scaled confidence log(p_y / (1 - p_y)), averaged over the queries of each record.

    The loss of one query is log(1 + exp(-phi)): ordering records by phi is ordering them by loss, but phi keeps apart
    what the loss rounds to zero.
    """
    return scaled_confidence(*classifier_outputs(signals, attack)).mean(1)
