"""Learning the dictionaries from the training pictures before training, without labels."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from lightning_privacy.callbacks.sparse_coding.layers import SparseCode2d
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.ranks import world_size
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.errors import InputError

__all__ = ["training_records", "warm_up"]


class _Enough(Exception):  # noqa: N818  no error: the rest of the network need not run
    pass


def training_records(trainer: L.Trainer) -> tuple[Any, Callable[[list[Any]], Any]]:
    """Return the dataset behind the training loader and the function that makes a batch of its records.

    Args:
        trainer: In or after ``on_train_start``.

    Raises:
        InputError: the loader has no dataset with a length.
    """
    loader: Any = trainer.train_dataloader
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or collate is None:
        raise InputError(
            f"SparseCoding: `warm_up_epochs` reads the training pictures in an order of its own, which a "
            f"{type(loader).__name__} without a dataset of known length does not allow. Give a DataLoader over a map-style "
            "dataset, or set `warm_up_epochs: 0`."
        )
    return dataset, collate


def warm_up(
    module: L.LightningModule,
    layers: Sequence[SparseCode2d],
    records: tuple[Any, Callable[[list[Any]], Any]],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Take steps of the local rule on every layer over the training pictures; all ranks end with the same dictionaries.

    The module runs in evaluation mode, without gradients, up to the last of the layers: nothing else of it changes, and
    neither the loaders' positions nor the random states do.

    Args:
        module: Its ``forward`` takes pictures.
        layers: The sparse layers.
        records: From `training_records`.
        epochs: Passes over the records.
        batch_size: Records a step, of all ranks together.
        seed: Of the order.

    Raises:
        InputError: the module has no ``forward`` of pictures, or it does not run the layers.
    """
    dataset, collate = records
    rank = torch.distributed.get_rank() if world_size() > 1 else 0
    with _listening(module, layers), torch.no_grad():
        for epoch in range(epochs):
            order = torch.randperm(len(dataset), generator=seeded_generator(seed, "warm-up", epoch)).tolist()
            for first in range(0, len(order), batch_size):
                mine = order[first : first + batch_size][rank :: world_size()]
                if mine:
                    with own_random_state(seed, "warm-up", epoch, first, rank):
                        pictures = images_of(collate([dataset[i] for i in mine]))
                        _run(module, pictures.to(layers[0].weight))
                for layer in layers:
                    layer.update_dictionary()


def _run(module: L.LightningModule, pictures: Tensor) -> None:
    precision: Any = module.trainer.precision_plugin
    missing = InputError(
        f"SparseCoding: `warm_up_epochs` needs `{type(module).__name__}.forward(pictures)`, of pictures alone. Add it, or "
        "set `warm_up_epochs: 0`."
    )
    try:
        inspect.signature(module.forward).bind(pictures)
    except TypeError as other:
        raise missing from other
    try:
        with precision.forward_context():
            module(pictures)
    except _Enough:
        return
    except NotImplementedError as absent:
        raise missing from absent
    raise InputError(
        f"SparseCoding: `{type(module).__name__}.forward(pictures)` does not run all sparse layers, so that "
        "`warm_up_epochs` cannot teach them. Let it run them, or set `warm_up_epochs: 0`."
    )


@contextmanager
def _listening(module: nn.Module, layers: Sequence[SparseCode2d]) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    learning = {layer: layer.learn for layer in layers}
    seen: set[nn.Module] = set()

    def note(layer: nn.Module, args: Any, output: Any) -> None:
        seen.add(layer)
        if len(seen) == len(set(layers)):
            seen.clear()
            raise _Enough

    with ExitStack() as stack:
        for layer in learning:
            stack.callback(layer.register_forward_hook(note).remove)
        module.eval()
        for layer in learning:
            layer.train()
            layer.learn = True
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            for layer, learn in learning.items():
                layer.learn, layer.sums = learn, None
