"""What an honest client shares: the update that attacks are measured on."""

from collections.abc import Iterable
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.local_steps import weight_difference
from lightning_privacy.attacks.leakage.statistics import statistics_after_step
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.attacks.leakage.update import LocalTraining, Mode, SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["share_update"]


def share_update(
    module: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    withheld: Iterable[str] = (),
    mode: Mode = "train",
    local: LocalTraining | None = None,
    tell: Literal["labels", "nothing"] = "nothing",
    statistics: bool = False,
) -> SharedUpdate:
    """Return the update of a client that trains a network with cross-entropy on its records.

    Neither the network nor its running statistics change. An audit of a real training run fills `SharedUpdate` itself.

    Args:
        module: The client's network, secrets and all.
        images: The client's pictures in [0, 1].
        labels: Their classes.
        withheld: Parameters that are not shared.
        mode: State of the normalisation layers.
        local: Local training whose weight difference is shared; None shares one gradient of all records.
        tell: ``labels`` if the attacker is to know them in advance.
        statistics: Whether the running statistics after one step are shared too.

    Raises:
        InputError: Statistics are to be shared after several steps, or in mode ``eval``, where they do not change.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> update = share_update(net, torch.rand(1, 1, 2, 2), torch.tensor([1]), withheld=["1.weight"])
        >>> update.kind, list(update.values), bool(update.values["1.bias"][1] < 0)
        ('gradient', ['1.bias'], True)
    """
    channels, height, width = images.shape[1:]
    view = target_of(module, (channels, height, width), classes=0)
    kept = set(withheld)
    if statistics and (local is not None or mode == "eval"):
        raise InputError("Running statistics are shared after one gradient in mode train only; leave out `statistics`.")
    if local is None:
        values = view.gradients(view.parameters, images, labels, mode)
    else:
        values = weight_difference(view, view.parameters, images, labels, local, mode)
    return SharedUpdate(
        {name: value.detach() for name, value in values.items() if name not in kept},
        n_records=len(images),
        kind="gradient" if local is None else "difference",
        mode=mode,
        labels=labels.clone() if tell == "labels" else None,
        local=local,
        statistics=(
            {k: v.detach() for k, v in statistics_after_step(view, view.parameters, images).items()}
            if statistics
            else {}
        ),
    )
