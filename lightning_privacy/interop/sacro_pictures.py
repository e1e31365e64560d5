"""Which part of a classifier is the network, and what that part is given."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.callbacks.audits.signals import available_signals, missing_signals
from lightning_privacy.callbacks.audits.untouched import on_device, untouched
from lightning_privacy.core.batches import labels_of
from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_network import NetworkSource, load_network, network_source

__all__ = ["FoundNetwork", "find_network", "largest_difference", "probabilities", "read_pictures"]

_SAME = 1e-4  # relative difference of two float32 passes through the same layers; another eps or padding is far above


@dataclass(frozen=True)
class FoundNetwork:
    """The part of a module that maps pictures to class scores.

    Args:
        network: That part.
        made: Its source and weights.
        rebuilt: The network that these make, on the CPU.
    """

    network: nn.Module
    made: NetworkSource
    rebuilt: nn.Module


def find_network(module: L.LightningModule, split: Any, role: str) -> FoundNetwork:
    """Return the outermost part of a module whose output is ``logits(batch)`` and which can be rebuilt.

    Args:
        module: Has ``logits(batch)``.
        split: A set-up `MembershipSplit`.
        role: A role with records.

    Raises:
        InputError: there is no such part.
        MissingProtocolError: the module has no ``logits``.
    """
    if "logits" not in available_signals(module):
        raise missing_signals(module, {"logits"})
    refusals: list[str] = []
    with untouched(module):
        batch = on_device(module, next(iter(split.loader(role))))
        calls, logits = _recorded(module, batch, list(module.modules()))
        for part, pictures, output in calls:
            if output.shape != logits.shape or not torch.equal(output, logits):
                continue
            try:
                made = network_source(part, pictures[:2], logits.shape[1])
                rebuilt = load_network(made)
            except InputError as wrong:
                refusals.append(str(wrong))
                continue
            distance = largest_difference(logits.float(), rebuilt.to(pictures.device)(pictures.float()).float())
            if distance <= _SAME:
                return FoundNetwork(part, made, rebuilt.cpu().float())
            refusals.append(f"{type(part).__name__}, rebuilt, differs from itself by {distance:.2g}.")
    why = (
        " ".join(refusals) or "No part of it takes one float tensor (batch, channels, height, width) and returns them."
    )
    raise InputError(
        f"{type(module).__name__} has no part that gives its logits and can be rebuilt by torch alone. {why}"
    )


def read_pictures(
    module: L.LightningModule, split: Any, role: str, found: FoundNetwork
) -> tuple[Float[np.ndarray, "records channels height width"], Int[np.ndarray, " records"]]:
    """Return what the network is given for the records of a role, in order, and their classes.

    Raises:
        InputError: the module asks its network more than once a batch, or for some record the rebuilt network gives
            other scores than the module.
    """
    pictures, labels = [], []
    with untouched(module):
        for batch in split.loader(role):
            moved = on_device(module, batch)
            calls, logits = _recorded(module, moved, [found.network])
            if len(calls) != 1:
                raise InputError(
                    f"{type(module).__name__}.logits calls its {type(found.network).__name__} {len(calls)} times a batch, "
                    'so its pictures are not those of the records; export its probabilities alone (`kind="probabilities"`).'
                )
            given = calls[0][1].float()
            distance = largest_difference(logits.float(), found.rebuilt.to(given.device)(given).float())
            if not distance <= _SAME:
                raise InputError(
                    f"The rebuilt {type(found.network).__name__} differs from {type(module).__name__} by {distance:.2g} on "
                    f'some record of the role `{role}`; export its probabilities alone (`kind="probabilities"`).'
                )
            pictures.append(given.cpu().numpy())
            labels.append(labels_of(moved).cpu().numpy())
    found.rebuilt.cpu()
    return np.concatenate(pictures), np.concatenate(labels)


def largest_difference(first: Float[Tensor, "batch classes"], second: Float[Tensor, "batch classes"]) -> float:
    """Return the largest difference of two outputs relative to their size.

    Example:
        >>> largest_difference(torch.tensor([[4.0, 0.0]]), torch.tensor([[4.0, 2.0]]))
        0.5
    """
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max() / first.abs().max().clamp_min(1.0))


@torch.no_grad()
def probabilities(
    network: nn.Module, pictures: Float[np.ndarray, "records channels height width"], batch_size: int
) -> Float[np.ndarray, "records classes"]:
    """Return class probabilities, computed as SACRO-ML does: in float32, so many records at once, then widened."""
    parts = torch.from_numpy(pictures).split(batch_size)
    return torch.cat([network(part).softmax(1) for part in parts]).double().numpy()


def _recorded(
    module: L.LightningModule, batch: Any, parts: list[nn.Module]
) -> tuple[list[tuple[nn.Module, Tensor, Tensor]], Tensor]:
    """Return each part's calls (part, its one input, its output), outermost part first, and the logits."""
    order = {part: place for place, part in enumerate(parts)}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4 and isinstance(output, Tensor):
            calls.append((part, inputs[0].detach(), output.detach()))

    hooks = [part.register_forward_hook(note) for part in parts]
    try:
        logits = module.logits(batch)  # pyright: ignore[reportCallIssue]
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(calls, key=lambda call: order[call[0]]), logits
