"""Flower's records as tensors and numbers, and back."""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.federated.rounds import Reply

__all__ = ["ARRAYS", "CONFIG", "METRICS", "content_of", "received_arrays", "received_round", "to_arrays"]

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
"""Names of the records in messages: those of Flower's own strategies."""


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower sends them, in their order.

    Args:
        tensors: By name.
    """
    return ArrayRecord({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def received_arrays(message: Message) -> dict[str, Tensor]:
    """Return the tensors of a message from the server.

    Args:
        message: With one record of arrays.

    Raises:
        InputError: it has none, or several.
    """
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise InputError(
            f"The server's message has {len(records)} records of arrays, and a round takes one. Use a strategy of Flower's "
            "that sends the model's weights alone."
        )
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in records[0].items()}


def received_round(message: Message) -> tuple[int, bool]:
    """Return the number of the round, from 1, and whether it is the last one.

    Args:
        message: From the server.

    Raises:
        InputError: it tells no round.
    """
    config: Mapping[str, object] = next(iter(message.content.config_records.values()), ConfigRecord())
    number, last = config.get("server-round"), config.get("rounds")
    if not isinstance(number, int) or number < 1:
        raise InputError(
            "The server's message tells no round (`server-round` in its ConfigRecord). Use Flower's strategies."
        )
    return number, number == last


def content_of(reply: Reply, client: int) -> RecordDict:
    """Return what a round sends as the content of a message.

    Args:
        reply: Of `train_round` or `evaluate_round`.
        client: Number of the client, for the server's tables.
    """
    content = RecordDict({METRICS: MetricRecord({"client": client, **reply.metrics})})
    if reply.arrays:
        content[ARRAYS] = to_arrays(reply.arrays)
    return content
