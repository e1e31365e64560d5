"""A shared update in the form that the package ``breaching`` reads, so that its attacks can be run on our defences."""

from typing import Any

from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["to_breaching"]


class _Metadata(dict[str, Any]):
    """Facts about the data that are read as items and as attributes, as breaching does."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def to_breaching(target: LeakageTarget, update: SharedUpdate) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the two arguments of ``attacker.reconstruct`` in breaching: the server's payload and the shared data.

    Parameters stand in the order of the model's own. Pictures lie in [0, 1] without further normalisation. Buffers are
    given only in mode ``eval``: with them breaching puts its model in that mode, without them in the other.

    Args:
        target: The model; without secrets, as breaching needs every parameter (see `LeakageTarget.with_secrets`).
        update: What the client shared.

    Raises:
        InputError: The model has secrets, or not every parameter was shared.

    Example:
        >>> import torch
        >>> from lightning_privacy.attacks.leakage.client import share_update
        >>> from lightning_privacy.attacks.leakage.target import target_of
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> update = share_update(net, torch.rand(1, 1, 2, 2), torch.tensor([1]))
        >>> payload, shared = to_breaching(target_of(net, (1, 2, 2), 2), update)
        >>> sorted(payload[0]), sorted(shared[0]), payload[0]["metadata"].shape
        (['buffers', 'metadata', 'parameters'], ['buffers', 'gradients', 'metadata'], (1, 2, 2))

    Source:
        The script ``minimal_example.py`` of JonasGeiping/breaching.
    """
    if target.secrets:
        raise InputError(
            f"breaching needs every parameter, but the client keeps {sorted(target.secrets)} to itself; decide on them with "
            "`with_secrets` first."
        )
    names = [name for name, _ in target.skeleton.named_parameters()]
    if missing := sorted(set(names) - set(update.values)):
        raise InputError(
            f"breaching needs the update of every parameter, but {missing} were not shared; run our own attacks."
        )
    channels = target.image_shape[0]
    data = _Metadata(
        shape=target.image_shape,
        classes=target.classes,
        modality="vision",
        task="classification",
        normalize=False,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    local = None
    if update.local is not None and update.kind == "difference":
        rows = update.local.rows(update.n_records)
        labels = (
            [] if update.labels is None else [update.labels[r.to(update.labels.device)].sort().values for r in rows]
        )
        local = {
            "lr": update.local.learning_rate,
            "steps": update.local.steps,
            "data_per_step": update.local.batch_size,
            "labels": labels,
        }
    buffers = [target.buffers[name] for name, _ in target.skeleton.named_buffers()] if update.mode == "eval" else None
    payload = {"parameters": [target.parameters[n] for n in names], "buffers": buffers, "metadata": data}
    facts = {"num_data_points": update.n_records, "labels": update.labels, "local_hyperparams": local}
    shared = {"gradients": [update.values[n] for n in names], "buffers": None, "metadata": facts}
    return [payload], [shared]
