"""What a federated client shares after a round, and what the server knows of how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["Kind", "LocalTraining", "Mode", "SharedUpdate"]

Kind = Literal["gradient", "difference"]
"""A gradient of the mean loss (FedSGD), or the weights after local training minus the weights before (FedAvg)."""
Mode = Literal["train", "eval"]
"""Whether the client's normalisation layers used the batch's own statistics or the running ones."""


@dataclass(frozen=True)
class LocalTraining:
    """How a client trained locally, as the server prescribed it: plain SGD.

    Args:
        steps: Optimizer steps.
        learning_rate: Of SGD.
        batch_size: Records a step.
        order: Rows of the records of each step, where the attacker knows them; otherwise it assumes consecutive rows,
            from the start again after the last one.
        momentum: Of SGD; each round starts without any.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Of SGD.
    """

    steps: int
    learning_rate: float | int
    batch_size: int
    order: Int[Tensor, "steps batch"] | None = None
    momentum: float | int = 0
    nesterov: bool = False
    weight_decay: float | int = 0

    def rows(self, n_records: int) -> Int[Tensor, "steps batch"]:
        """Return the rows of each step, as the attacker knows or assumes them.

        Example:
            >>> LocalTraining(steps=3, learning_rate=0.1, batch_size=2).rows(4).tolist()
            [[0, 1], [2, 3], [0, 1]]
        """
        if self.order is not None:
            return self.order
        return torch.arange(self.steps * self.batch_size).reshape(self.steps, self.batch_size) % n_records


@dataclass(frozen=True)
class SharedUpdate:
    """One client's update of one round, exactly as it left the client.

    Args:
        values: Parameter name -> what was shared of it. A parameter that the client withheld is absent, never zero.
        n_records: Records behind the update.
        kind: ``gradient`` or ``difference``.
        mode: State of the client's normalisation layers.
        labels: The records' classes, where the attacker knows them.
        local: How the client trained; needed for a difference.
        statistics: Running mean and variance of batch normalisation after the round, by buffer name, where the client shares
            them; otherwise empty. They are matched after a single step in mode ``train``.

    Raises:
        InputError: Nothing was shared, the number of records or labels is wrong, or a difference does not say how the
            client trained.

    Example:
        >>> SharedUpdate({"head.bias": torch.tensor([3.0, -4.0])}, n_records=1).norm()
        5.0
    """

    values: Mapping[str, Tensor]
    n_records: int
    kind: Kind = "gradient"
    mode: Mode = "train"
    labels: Int[Tensor, " records"] | None = None
    local: LocalTraining | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError(
                "The shared update holds no parameter, so that nothing can be matched; share at least one."
            )
        if self.n_records < 1:
            raise InputError(f"A shared update needs at least one record behind it, but n_records is {self.n_records}.")
        if self.labels is not None and len(self.labels) != self.n_records:
            raise InputError(
                f"The update is of {self.n_records} records, but {len(self.labels)} labels are given; give one a record."
            )
        if self.kind == "difference" and self.local is None:
            raise InputError(
                "A weight difference can only be matched by simulating the local training; give `local` its steps, "
                "learning rate and batch size."
            )

    def norm(self) -> float:
        """Return the Euclidean length of everything that was shared."""
        return float(torch.stack([value.double().square().sum() for value in self.values.values()]).sum().sqrt())

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "SharedUpdate":
        """Return a copy in another precision, and on another device if one is given."""
        labels = None if self.labels is None else self.labels.to(device=device)
        values, statistics = (
            {name: value.detach().to(dtype=dtype, device=device) for name, value in held.items()}
            for held in (self.values, self.statistics)
        )
        return replace(self, values=values, statistics=statistics, labels=labels)

    def mean_gradient(self) -> dict[str, Tensor]:
        """Return the gradient of the mean loss, or for a difference the average one over the local steps.

        For one step of SGD it is exact; for several it is the usual approximation that rules read which look at one
        layer's gradient.

        Example:
            >>> local = LocalTraining(steps=2, learning_rate=0.5, batch_size=1)
            >>> SharedUpdate({"w": torch.tensor([-1.0])}, 2, "difference", local=local).mean_gradient()["w"].item()
            1.0
        """
        if self.local is None or self.kind == "gradient":
            return dict(self.values)
        rate = self.local.steps * self.local.learning_rate
        return {name: -value / rate for name, value in self.values.items()}
