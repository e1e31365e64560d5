"""A module trained beside the model: own optimizer, fp32, equal on all ranks, checkpointed by its owner as tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.ranks import world_size

__all__ = ["SideLearner"]


def _distributed() -> bool:
    return world_size() > 1


class SideLearner:
    """Own a small module and its optimizer, apart from the LightningModule.

    It is no submodule (it would enter DDP's buckets, ``parameters()``, the user's optimizer and checkpoints) and no
    second Lightning optimizer (``global_step`` would count its steps). It never meets the model's GradScaler.

    Args:
        build: Makes the module; called under a forked random state.
        optimizer: Makes the optimizer from the parameters.
        device: Where it lives.
        seed: Of its initialisation and of its own generator.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        optimizer: Callable[[Iterator[nn.Parameter]], Optimizer],
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.device = torch.device(device)
        # Building a layer draws numbers: without the fork, an idle defence would change the user's run.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
            self.module = build().to(self.device, torch.float32)
        if _distributed():
            for tensor in [*self.module.parameters(), *self.module.buffers()]:
                dist.broadcast(tensor.data, src=0)
        self.optimizer = optimizer(self.module.parameters())
        self.generator = seeded_generator(seed, "side learner", device=self.device)
        self.steps = 0

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Switch autocast off: the learner reads and computes in fp32 whatever the model does."""
        with torch.autocast(self.device.type, enabled=False):
            yield

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """Yield the module with gradients flowing through it but not into it."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

    def step(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """Take one optimizer step; gradients are averaged over ranks.

        Args:
            loss_fn: Computes the loss from inputs without a graph to the model.

        Returns:
            This rank's detached loss.
        """
        with torch.enable_grad(), self.full_precision():
            self.optimizer.zero_grad(set_to_none=True)
            loss = loss_fn()
            loss.backward()
        if _distributed():
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, so that ``torch.load(weights_only=True)`` reads them."""
        return {
            "module": {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.steps = int(state["steps"])
