"""The gradients of one optimizer step by name, and their replacement in place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_privacy.errors import InputError

__all__ = ["gradients_of", "put_gradients"]


def gradients_of(module: nn.Module, optimizer: Optimizer, defence: str) -> dict[str, Tensor]:
    """Return the gradients that an optimizer is about to use, by parameter name, in the optimizer's order.

    The order does not depend on the rank, so that ranks that draw from equal generators draw the same for each tensor.

    Args:
        module: Whose parameters give the names; a parameter that is not the module's is named by its place.
        optimizer: The optimizer; its parameters without a gradient are left out.
        defence: Who asks, for the error.

    Returns:
        The gradients themselves, not copies.

    Raises:
        InputError: a gradient is sparse.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> {k: v.tolist() for k, v in gradients_of(net, torch.optim.SGD(net.parameters(), lr=1.0), "x").items()}
        {'weight': [[1.0, 1.0]], 'bias': [1.0]}
    """
    names = {id(p): name for name, p in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            name = names.get(id(parameter), f"optimizer.{g}.{i}")
            if parameter.grad.layout != torch.strided:
                raise InputError(
                    f"`{defence}` cannot change the sparse gradient of `{name}`, whose rows say which entries were used; "
                    "build the embedding with `sparse=False`."
                )
            found[name] = parameter.grad
    return found


@torch.no_grad()
def put_gradients(gradients: Mapping[str, Tensor], defended: Mapping[str, Tensor]) -> None:
    """Write defended gradients over the original ones.

    Args:
        gradients: As `gradients_of` returned them.
        defended: Under the same names.
    """
    for name, gradient in gradients.items():
        gradient.copy_(defended[name])
