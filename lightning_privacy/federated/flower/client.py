"""A Flower ClientApp that trains a LightningModule with its defences, and keeps its secrets."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from lightning_privacy.federated.flower.mod import DefaultDeny
from lightning_privacy.federated.flower.records import content_of, received_arrays, received_round
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.federated.rounds import METRICS, ClientParts, Reply, evaluate_round, train_round

__all__ = ["client_app"]

Build = Callable[[Context], ClientParts]
Place = Callable[[Context], str | os.PathLike[str]]


def client_app(
    build: Build,
    private: str | os.PathLike[str] | Place,
    *,
    metrics: Sequence[str] = METRICS,
    mods: Sequence[Any] = (),
    checkpoint: Callable[[Context], Path | None] = lambda _: None,
    told: Callable[[Context, int, Reply], None] = lambda *_: None,
) -> ClientApp:
    """Return a Flower ClientApp of any LightningModule and LightningDataModule.

    Each message is answered by a new Lightning trainer with the client's defences as callbacks. `DefaultDeny` stands on both
    sides of the mods, whatever they are.

    Args:
        build: Makes the client's parts anew, from Flower's context (``context.node_config`` is the client's own). Called
            for every message; reads nothing that the server sent.
        private: The client's private folder, or a function of the context that returns it.
        metrics: Names of what an evaluation tells the server; `ClientParts.metrics` may ask for no others.
        mods: Further mods, such as Flower's ``LocalDpMod``.
        checkpoint: Where the model of the last round is saved, without its secrets; None for nowhere.
        told: Called on the client with the number of the round and what is about to be sent, for the client's own records.

    Returns:
        The app, for the ``clientapp`` component of a Flower app.
    """

    def place(context: Context) -> str | os.PathLike[str]:
        return private(context) if callable(private) else private

    deny = DefaultDeny(place, {"num-examples", "client", "train/loss", *metrics})
    app = ClientApp(mods=[])

    @app.train(mods=[deny, *mods, deny] if mods else [deny])
    def train(message: Message, context: Context) -> Message:
        number, _ = received_round(message)
        reply = train_round(build(context), received_arrays(message), PrivateState(place(context)), number)
        told(context, number, reply)
        return Message(content_of(reply, _number_of(context)), reply_to=message)

    # Mods that act on weights have nothing to act on here.
    @app.evaluate(mods=[deny])
    def evaluate(message: Message, context: Context) -> Message:
        number, last = received_round(message)
        where = checkpoint(context) if last else None
        reply = evaluate_round(build(context), received_arrays(message), PrivateState(place(context)), number, where)
        told(context, number, reply)
        return Message(content_of(reply, _number_of(context)), reply_to=message)

    return app


def _number_of(context: Context) -> int:
    """Return which client this is, for tables; its place in the federation and nothing else."""
    number = context.node_config.get("partition-id", 0)
    return number if isinstance(number, int) else 0
