"""One defence a slot, for tests of the core; they defend against nothing and are not registered."""

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_privacy.core.defence import Defence, Slot, Step, SurgeryReport
from lightning_privacy.core.side_learner import SideLearner
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.properties import Property

__all__ = ["Gained", "GradientDummy", "ObjectiveDummy", "PostStepDummy", "SurgeryDummy"]


class ObjectiveDummy(Defence):
    """Train a small network beside the model to predict its loss; add ``strength`` times that prediction to the loss.

    Args:
        strength: 0 leaves the loss as it is, with everything else still running.
        lr: Learning rate of the network.
        seed: Of the network.
    """

    name: ClassVar[str] = "objective_dummy"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.OBJECTIVE})
    requires = frozenset({Property.UNSHARDED, Property.ONE_STEP_PER_CLOSURE, Property.AUTOMATIC_OPTIMIZATION})

    def __init__(self, strength: float = 0.1, lr: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        self.strength, self.lr, self.seed = strength, lr, seed

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Build the network."""
        self.learner = SideLearner(
            lambda: nn.Linear(1, 1),
            lambda parameters: torch.optim.Adam(parameters, lr=self.lr),
            trainer.strategy.root_device,
            self.seed,
        )

    def objective(self, step: Step) -> Tensor:
        """Return the loss plus the weighted prediction."""
        seen = step.loss.float().view(1, 1)
        truth = seen.detach()
        self.learner.step(lambda: (self.learner.module(truth) - truth).square().mean())
        with self.learner.frozen() as network:
            return step.loss + self.strength * network(seen).mean()

    def state_dict(self) -> dict[str, Any]:
        """Return the network's state."""
        return self.learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the network's state."""
        self.learner.load_state_dict(state_dict)


class Gained(nn.Module):
    """A layer whose output is multiplied by a trainable number, at first 1.

    Args:
        inner: The layer.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the layer's output times the gain."""
        return self.inner(x) * self.gain


class SurgeryDummy(Defence):
    """Wrap layers in `Gained`.

    Args:
        names: Which layers; see `replace_modules`.
    """

    name: ClassVar[str] = "surgery_dummy"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    breaks = frozenset({Property.STABLE_STATE_DICT})

    def __init__(self, names: list[str] | None = None) -> None:
        super().__init__()
        self.names = names

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Wrap the named layers, or all linear and convolutional ones."""
        kinds = (nn.Linear, nn.Conv2d)
        return replace_modules(module, Gained, types=kinds, names=self.names or [])


class GradientDummy(Defence):
    """Multiply every gradient.

    Args:
        factor: What by.
    """

    name: ClassVar[str] = "gradient_dummy"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.GRADIENT})
    requires = frozenset({Property.NO_ACCUMULATION, Property.TRAINER_CLIPPING_OFF, Property.NO_CROSS_SAMPLE_LAYERS})
    breaks = frozenset({Property.PLAIN_GRADIENTS})

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def transform_gradients(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Multiply in place."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.factor)


class PostStepDummy(Defence):
    """Keep every trained weight within bounds.

    Args:
        bound: Largest absolute value.
    """

    name: ClassVar[str] = "post_step_dummy"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.POST_STEP})
    requires = frozenset({Property.PLAIN_GRADIENTS})
    remedies: ClassVar[Mapping[Property, str]] = {
        Property.PLAIN_GRADIENTS: "Bounds need plain gradients; leave one out."
    }

    def __init__(self, bound: float = 0.05) -> None:
        super().__init__()
        self.bound = bound

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Clamp in place."""
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.clamp_(-self.bound, self.bound)
