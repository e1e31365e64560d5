"""The update that a guess of pictures, labels and secrets would have caused, differentiable in all of them."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import LocalTraining, Mode, SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["simulated_update", "weight_difference"]

Pictures = Float[Tensor, "batch channels height width"]


def weight_difference(
    target: LeakageTarget,
    parameters: Mapping[str, Tensor],
    images: Pictures,
    labels: Tensor,
    local: LocalTraining,
    mode: Mode,
) -> dict[str, Tensor]:
    """Return the weights after local SGD minus the weights before, of every parameter.

    Secret parameters are trained like the others: that is what the client does.

    Args:
        target: The model.
        parameters: Every parameter before the first step.
        images: The client's pictures.
        labels: Their class indices, or rows of class probabilities.
        local: Steps, rate, batches, momentum, weight decay.
        mode: State of the normalisation layers.

    Source:
        FedAvg, arXiv 1602.05629, algorithm 1; matched by simulation as in arXiv 2202.08827, section 4. Momentum as in
        torch.optim.SGD.
    """
    now = dict(parameters)
    velocity: dict[str, Tensor] = {}
    for rows in local.rows(len(images)):
        rows = rows.to(images.device)
        slope = target.gradients(now, images[rows], labels[rows], mode)
        for name, gradient in slope.items():
            step = gradient + local.weight_decay * now[name]
            if local.momentum:
                velocity[name] = local.momentum * velocity[name] + step if name in velocity else step
                step = step + local.momentum * velocity[name] if local.nesterov else velocity[name]
            now[name] = now[name] - local.learning_rate * step
    return {name: now[name] - before for name, before in parameters.items()}


def simulated_update(
    target: LeakageTarget, parameters: Mapping[str, Tensor], images: Pictures, labels: Tensor, update: SharedUpdate
) -> dict[str, Tensor]:
    """Return what the client would have shared of these pictures, for the parameters that it did share.

    Args:
        target: The model.
        parameters: Every parameter at the start of the round, the secret ones as supposed.
        images: Supposed pictures.
        labels: Supposed class indices or probabilities.
        update: The update to be matched; only its names and its kind are read.

    Raises:
        InputError: The update holds a parameter that the model does not have.
    """
    if unknown := sorted(set(update.values) - set(parameters)):
        raise InputError(f"The update shares {unknown}, which the attacked model does not have; match names first.")
    if update.kind == "gradient" or update.local is None:
        return target.gradients(parameters, images, labels, update.mode, update.values)
    difference = weight_difference(target, parameters, images, labels, update.local, update.mode)
    return {name: difference[name] for name in update.values}
