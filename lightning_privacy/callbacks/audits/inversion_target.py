"""What an inversion attacker sees of a LightningModule: the module, frozen, as a function of pictures alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.target import InversionTarget, Tap
from lightning_privacy.callbacks.audits.untouched import on_device, precision_of
from lightning_privacy.core.batches import has_labels, images_of, labels_of, with_images
from lightning_privacy.core.taps import find_tap
from lightning_privacy.errors import InputError, MissingProtocolError

__all__ = ["batch_like", "check_taps", "frozen", "read_pictures", "target_at"]


class _ReachedError(Exception):
    """The forward pass has come to the tap; what follows need not run."""

    def __init__(self, value: Any) -> None:
        super().__init__("tap reached")
        self.value = value


@contextmanager
def frozen(module: L.LightningModule) -> Iterator[None]:
    """Hold a module still for an attacker who differentiates through it.

    Evaluation mode, no gradient in any weight; modes, weights' flags and the global random state come back. Defences that
    act at inference go on acting.
    """
    modes = [(part, part.training) for part in module.modules()]
    flags = [(weight, weight.requires_grad) for weight in module.parameters()]
    try:
        with isolate_rng():
            module.eval()
            for weight, _ in flags:
                weight.requires_grad_(False)
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


def batch_like(template: Any, images: Float[Tensor, "n channels height width"]) -> Any:
    """Return a batch with given pictures; whatever else a batch of the user's has is filled from a template.

    Args:
        template: A batch as the loader yields it; its labels and the like are repeated, and say nothing of the pictures.
        images: The pictures.

    Example:
        >>> batch = batch_like((torch.zeros(2, 1, 4, 4), torch.tensor([5, 6])), torch.ones(3, 1, 4, 4))
        >>> batch[0].shape, batch[1].tolist()
        (torch.Size([3, 1, 4, 4]), [5, 6, 5])
    """
    records, n = len(images_of(template)), len(images)
    rows = torch.arange(n) % records

    def fill(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == records:
            return value[rows.to(value.device)]
        if isinstance(value, list | tuple) and len(value) == records and not isinstance(value, str):
            return type(value)(value[i] for i in rows.tolist())
        return value

    if isinstance(template, Mapping):
        filled: Any = {name: fill(value) for name, value in template.items()}
    else:
        filled = type(template)([fill(value) for value in template])
    return with_images(filled, images)


def check_taps(module: L.LightningModule, taps: Mapping[Tap, str | None]) -> None:
    """Check that a module can be listened to at every tap.

    Args:
        module: The module.
        taps: Layer by tap; None for what the module's own methods give.

    Raises:
        InputError: the split tap names no layer.
        MissingProtocolError: the module has no ``logits`` or no ``embedding``.
        NoEffectError: there is no such layer.
    """
    name = type(module).__name__
    for tap, layer in taps.items():
        if layer is not None:
            find_tap(module, layer)
        elif tap == "split":
            raise InputError(
                "InversionAudit: the tap `split` is a layer of your network and needs its name, such as `split: "
                "network.first_part`; its output is what leaves the client."
            )
        elif tap in ("logits", "probabilities") and not callable(getattr(module, "logits", None)):
            raise MissingProtocolError(
                f"InversionAudit: the tap `{tap}` needs `{name}.logits(batch)`, one row of class scores a record. Add it, or "
                "leave the tap out."
            )
        elif tap == "features" and not callable(getattr(module, "embedding", None)):
            raise MissingProtocolError(
                f"InversionAudit: the tap `features` needs `{name}.embedding(batch)`, or the name of a layer. Add either, or "
                "leave the tap out."
            )


def target_at(
    module: L.LightningModule, tap: Tap, layer: str | None, template: Any, image_shape: tuple[int, int, int]
) -> InversionTarget:
    """Return a frozen module as an attacker's target.

    Args:
        module: The module, under `frozen`.
        tap: Where the attacker listens.
        layer: The layer's name; None for what the module's own methods give.
        template: A batch on the module's device.
        image_shape: Channels, height and width.
    """

    def observe(images: Tensor) -> Tensor:
        with precision_of(module):
            return _at(module, tap, layer, batch_like(template, images)).float()

    inside = tuple((name, part) for name, part in module.named_modules() if callable(getattr(part, "synthesise", None)))
    return InversionTarget(observe, tap, image_shape, layers=inside)


def _at(module: Any, tap: Tap, layer: str | None, batch: Any) -> Tensor:
    if layer is not None:
        return _output_of(module, layer, batch)
    if tap == "features":
        return module.embedding(batch)
    logits = module.logits(batch)
    return logits.float().softmax(1) if tap == "probabilities" else logits


def _output_of(module: Any, layer: str, batch: Any) -> Tensor:
    name, part = find_tap(module, layer)
    run: Callable[[], Any] = (
        (lambda: module.logits(batch))
        if callable(getattr(module, "logits", None))
        else (lambda: module(images_of(batch)))
    )

    def stop(inner: nn.Module, args: Any, output: Any) -> None:
        raise _ReachedError(output)

    handle = part.register_forward_hook(stop)
    try:
        run()
    except _ReachedError as reached:
        if isinstance(reached.value, Tensor):
            return reached.value
        raise InputError(
            f"The layer `{name}` returns a {type(reached.value).__name__} and no tensor; name a layer inside it."
        ) from None
    finally:
        handle.remove()
    raise InputError(f"The layer `{name}` does not run when the module classifies; name one that does.")


def read_pictures(
    module: L.LightningModule, split: Any, role: str, most: int | None = None
) -> tuple[Float[Tensor, "n channels height width"], Int[Tensor, " n"] | None, Any]:
    """Return a role's pictures on the module's device, their classes, and its first batch.

    Args:
        module: Whose device and transfer hooks are used.
        split: The set-up `MembershipSplit`.
        role: The role.
        most: Pictures at most, the first in the role's order; all if None.

    Returns:
        Pictures, classes (None where batches have none) and a batch.

    Raises:
        InputError: pictures are no floats in [0, 1].
    """
    found: list[Tensor] = []
    classes: list[Tensor] = []
    template = None
    for batch in split.loader(role):
        moved = on_device(module, batch)
        template = moved if template is None else template
        found.append(images_of(moved))
        if has_labels(moved):
            classes.append(labels_of(moved))
        if most is not None and sum(map(len, found)) >= most:
            break
    pictures = torch.cat(found)[:most]
    if pictures.ndim != 4 or not pictures.is_floating_point() or float(pictures.min()) < 0 or float(pictures.max()) > 1:
        raise InputError(
            f"InversionAudit: the pictures of the role `{role}` have shape {tuple(pictures.shape)}, type {pictures.dtype} and "
            f"values from {float(pictures.min()):.3g} to {float(pictures.max()):.3g}; PSNR and SSIM are defined on floats in "
            "[0, 1]. Let the datamodule yield those and normalise inside the module (`mean`, `std` of ImageClassifier)."
        )
    return pictures.float(), torch.cat(classes)[:most] if len(classes) == len(found) else None, template
