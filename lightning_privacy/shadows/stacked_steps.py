"""One training step of several models of one kind: stacked weights, one backward pass, gradients clipped a model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.optim import Optimizer

from lightning_privacy.shadows.refusals import CannotStack
from lightning_privacy.shadows.stacked_batches import refill
from lightning_privacy.shadows.stacked_layout import ChannelsTogether

__all__ = ["StackedModels", "clip_each"]


class StackedModels:
    """Several modules of one kind as one set of tensors with a leading dimension.

    Args:
        modules: Untrained, on one device, with the same names and shapes; the first stands for the code of all.
        precision: Lightning's word for it: ``bf16-mixed`` computes in bfloat16.

    Raises:
        CannotStack: the modules differ in more than their numbers.
    """

    def __init__(self, modules: Sequence[L.LightningModule], precision: Any = None) -> None:
        self.base, self.count, self.precision = modules[0], len(modules), precision
        named = [dict(module.named_parameters()) for module in modules]
        state = [dict(module.named_buffers()) for module in modules]
        shapes = [
            [(name, value.shape) for name, value in {**p, **b}.items()] for p, b in zip(named, state, strict=True)
        ]
        if any(each != shapes[0] for each in shapes):
            raise CannotStack("modules built from two seeds differ in the names or shapes of their weights")
        self.parameters = {
            name: torch.stack([each[name].detach() for each in named]).requires_grad_(parameter.requires_grad)
            for name, parameter in named[0].items()
        }
        self.buffers = {name: torch.stack([each[name] for each in state]) for name in state[0]}

    def adopt(self, optimizer: Optimizer) -> None:
        """Let the first module's optimizer step the stacked tensors in place of that module's own.

        Raises:
            CannotStack: it steps something that is no parameter of the module.
        """
        name_of = {id(parameter): name for name, parameter in self.base.named_parameters()}
        for group in optimizer.param_groups:
            if any(id(parameter) not in name_of for parameter in group["params"]):
                raise CannotStack("the optimizer steps tensors that are no parameters of the module")
            group["params"] = [self.parameters[name_of[id(parameter)]] for parameter in group["params"]]

    def backward(self, batches: Sequence[tuple[list[int], Any, list[Tensor]]]) -> Float[Tensor, " models"]:
        """Add the gradients of every model's loss and return the losses.

        Args:
            batches: For each size of batch, which models have it, its form and its stacked tensors.
        """
        losses = torch.empty(self.count, device=next(iter(self.parameters.values())).device)
        for models, form, tensors in batches:
            whole = len(models) == self.count
            index = torch.tensor(models, device=losses.device)
            parameters = self.parameters if whole else {name: each[index] for name, each in self.parameters.items()}
            buffers = self.buffers if whole else {name: each[index] for name, each in self.buffers.items()}
            loss = self.losses(parameters, buffers, form, tensors)
            loss.sum().backward()
            losses[index] = loss.detach().float()
            for name in {} if whole else buffers:
                self.buffers[name][index] = buffers[name]
        return losses

    def losses(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], form: Any, tensors: list[Tensor]
    ) -> Float[Tensor, " models"]:
        """Return the loss of each model on its own batch; statistics in ``buffers`` are updated in place."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
            return self.base.functional_loss(  # pyright: ignore[reportCallIssue]
                parameters, buffers, refill(form, iter(tensors))
            )

        on_cpu = next(iter(parameters.values())).device.type == "cpu"
        with self.arithmetic(), ChannelsTogether() if on_cpu else nullcontext():
            # Random numbers of a stack are others than those of each model alone: "error" refuses them.
            return vmap(one, randomness="error")(parameters, buffers, tensors)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Return the context in which Lightning would compute."""
        device = next(iter(self.parameters.values())).device
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def write_back(self, model: int) -> None:
        """Give the first module the weights and statistics of one model."""
        with torch.no_grad():
            for name, parameter in self.base.named_parameters():
                parameter.copy_(self.parameters[name][model])
            for name, buffer in self.base.named_buffers():
                buffer.copy_(self.buffers[name][model])


def clip_each(gradients: Sequence[Float[Tensor, "models ..."]], limit: float | int, algorithm: str) -> None:
    """Clip the gradients of each model by itself, in place.

    Args:
        gradients: Of every tensor that the optimizer steps, stacked.
        limit: Largest norm of a model's gradient, or largest absolute value.
        algorithm: ``norm`` or ``value``.

    Example:
        >>> gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> clip_each([gradient], 1.0, "norm"); gradient.round(decimals=3)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
        return
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (limit / (norms + 1e-6)).clamp(max=1)  # 1e-6 as in torch.nn.utils.clip_grad_norm_
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))
