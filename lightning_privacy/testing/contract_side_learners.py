"""Contract check on what is trained beside the model: gradients pass through it, never into it, and never back."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.core.defence import Defence
from lightning_privacy.core.side_learner import SideLearner
from lightning_privacy.testing.expect import expect
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import DefenceCase

__all__ = ["check_gradients_stay_apart", "side_learners"]


def side_learners(defence: Defence) -> list[SideLearner]:
    """Return what a defence trains beside the model.

    Args:
        defence: The defence, in or after a fit.
    """
    return [value for value in vars(defence).values() if isinstance(value, SideLearner)]


def check_gradients_stay_apart(case: DefenceCase, folder: Path | str) -> None:
    """The learner's step leaves the model's weights and gradients alone; the model's backward leaves the learner's."""
    watch = _Watch(case.build())
    fit(folder, case.module(), case.data(8), [watch.defence, watch])
    for learner in side_learners(watch.defence):
        names = {id(p) for p in learner.module.parameters()}
        expect(not names & watch.model, f"`{case.name}`: weights of the model are trained beside it.")
        expect(watch.stepped > 0 and learner.steps > 0, f"`{case.name}` never trained what it built beside the model.")


class _Watch(L.Callback):
    """Listed after the defence; compares both sides' gradients before and after the other's turn."""

    def __init__(self, defence: Defence) -> None:
        self.defence, self.stepped, self.model = defence, 0, set[int]()
        self._watched: set[int] = set()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.model = {id(p) for p in pl_module.parameters()}
        for learner in side_learners(self.defence):  # some are built at the first step
            if id(learner) not in self._watched:
                self._watched.add(id(learner))
                self._watch(learner, pl_module)

    def _watch(self, learner: SideLearner, module: L.LightningModule) -> None:
        step = learner.step

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            before = _weights_and_grads(module)
            out = step(*args, **kwargs)
            same = all(_same(a, b) for a, b in zip(before, _weights_and_grads(module), strict=True))
            expect(same, f"`{self.defence.name}`: training beside the model changed the model's weights or gradients.")
            self.stepped += 1
            return out

        learner.step = watched

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._before = [_weights_and_grads(x.module) for x in side_learners(self.defence)]

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        after = [_weights_and_grads(x.module) for x in side_learners(self.defence)]
        same = all(_same(a, b) for x, y in zip(self._before, after, strict=True) for a, b in zip(x, y, strict=True))
        expect(same, f"`{self.defence.name}`: the model's backward reached what is trained beside it.")


def _weights_and_grads(module: torch.nn.Module) -> list[Tensor | None]:
    copies: list[Tensor | None] = []
    for p in module.parameters():
        copies += [p.detach().clone(), None if p.grad is None else p.grad.clone()]
    return copies


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
