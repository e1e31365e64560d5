"""How good a classifier is on a whole data set: accuracy, AUROC and calibration."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassCalibrationError
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["ClassifierScores"]

BINS = 15  # arXiv 1706.04599, section 5


class _AurocWhereDefined(MulticlassAUROC):
    """NaN where a class has no record: one-vs-rest needs both sides."""

    absent: tuple[int, ...] = ()

    def compute(self) -> Tensor:
        present = dim_zero_cat(self.target).unique().tolist()  # of all processes: `compute` runs on gathered states
        self.absent = tuple(sorted(set(range(self.num_classes)) - set(present)))
        return torch.tensor(float("nan")) if self.absent else super().compute()


class ClassifierScores(nn.Module):
    """Accumulates class scores over batches and processes.

    Args:
        classes: Number of classes, at least 2.

    Example:
        >>> scores = ClassifierScores(2)
        >>> scores.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> values, absent = scores.compute()
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'accuracy': 1.0, 'calibration_error': 0.194, 'auroc': 1.0}
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.calibration_error = MulticlassCalibrationError(classes, n_bins=BINS, norm="l1")
        self.auroc = _AurocWhereDefined(classes, average="macro")

    def update(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> None:
        """Add a batch."""
        # In double, so that sure predictions do not round to ties; Apple's devices have no double.
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        probabilities = logits.detach().to(exact).softmax(1)
        for metric in (self.accuracy, self.calibration_error, self.auroc):
            metric.update(probabilities, labels)

    def compute(self) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """Return accuracy (share that is right), expected calibration error and macro one-vs-rest AUROC, and start anew.

        Returns:
            The scores, without ``auroc`` where a class has no record, and those classes.
        """
        metrics = {"accuracy": self.accuracy, "calibration_error": self.calibration_error, "auroc": self.auroc}
        values = {name: metric.compute().float() for name, metric in metrics.items()}
        absent = self.auroc.absent
        for metric in metrics.values():
            metric.reset()
        return ({name: value for name, value in values.items() if name != "auroc" or not absent}), absent
