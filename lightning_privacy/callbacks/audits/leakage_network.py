"""The audited module as attackers on its updates know it: pictures to class scores, with its secrets told apart."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.target import LeakageTarget, LockView, Secret, target_of
from lightning_privacy.callbacks.audits.inversion_target import batch_like
from lightning_privacy.callbacks.audits.leakage_client import Client

__all__ = ["PREFIX", "AttackedModel", "PictureScores", "attacked_model"]

PREFIX = "module."
"""What stands before the module's own names in those of its `PictureScores`."""


class PictureScores(nn.Module):
    """A module as a network of pictures alone.

    Args:
        module: With ``logits(batch)``.
        template: A batch on its device.
    """

    def __init__(self, module: nn.Module, template: Any) -> None:
        super().__init__()
        self.module = module
        self.template = template

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        return self.module.logits(batch_like(self.template, images))  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class AttackedModel:
    """What there is to attack.

    Args:
        target: The model as the server knows it that neither knows locks nor keys; names begin with `PREFIX`.
        secrets: The true values of what it does not know; empty where nothing is secret.
        lock: For one that knows the locks' weights; None where there are none.
        draw_through_lock: Secrets as that one draws them.
        ordinary: The same network with scale 1 and shift 0 in place of the secrets, all of it public; None where
            nothing is secret.
    """

    target: LeakageTarget
    secrets: Mapping[str, Tensor]
    lock: LockView | None = None
    draw_through_lock: Any = None
    ordinary: LeakageTarget | None = None


def attacked_model(client: Client, image_shape: tuple[int, int, int], classes: int) -> AttackedModel:
    """Return a client's model as attackers may know it.

    Args:
        client: The client; not changed.
        image_shape: Channels, height and width of its pictures.
        classes: Number of classes.
    """
    # Here, because whoever has no locks need not import them.
    from lightning_privacy.callbacks.key_lock.attack import leakage_view

    view = leakage_view(PictureScores(client.module, client.template))
    network = _without_frozen(view.network, set(view.secrets))
    loss = partial(F.cross_entropy, label_smoothing=client.smoothing)
    target = target_of(network, image_shape, classes, view.secrets, loss, view.draw_secrets if view.secrets else None)
    if not view.secrets:
        return AttackedModel(target, {})
    true = {name: network.get_parameter(name).detach().clone() for name in view.secrets}
    return AttackedModel(
        target,
        true,
        view.lock,
        view.draw_through_lock if view.lock is not None else None,
        target_of(_ordinary(network, view.secrets), image_shape, classes, loss=loss),
    )


def _ordinary(network: nn.Module, secrets: Mapping[str, Secret]) -> nn.Module:
    plain = copy.deepcopy(network)
    with torch.no_grad():
        for name in secrets:
            nn.init.constant_(plain.get_parameter(name), 0.0 if name.endswith("bias") else 1.0)
    return plain


def _without_frozen(network: nn.Module, secrets: set[str]) -> nn.Module:
    """Make buffers of parameters that are not trained: local steps leave them alone, and nothing of them is shared."""
    for name, value in list(network.named_parameters()):
        if not value.requires_grad and name not in secrets:
            place, _, attribute = name.rpartition(".")
            layer = network.get_submodule(place)
            delattr(layer, attribute)
            layer.register_buffer(attribute, value.detach().clone())
    return network
