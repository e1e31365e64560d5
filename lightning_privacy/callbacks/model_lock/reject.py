"""One more output beside a classifier's last layer, which those who use the model never see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["HeadListener", "RejectOutput", "add_reject", "find_reject", "last_linear", "running_statistics"]

NAME = "reject"


class RejectOutput(nn.Linear):
    """The reject score of the features that the last layer reads.

    It is a part of that layer which its forward pass does not use: scores keep one column a class.

    Args:
        features: Features of the last layer.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)


def last_linear(module: nn.Module, name: str | None, who: str) -> tuple[str, nn.Linear]:
    """Return the classifier's last linear layer.

    Args:
        module: The classifier.
        name: Its name; None takes what ``module.head_name`` says of ``module.network``, else the last linear layer with as
            many outputs as ``module.classes`` says, else the last.
        who: Who asks, for errors.

    Raises:
        NoEffectError: there is none.
        InputError: the name is that of something else.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, RejectOutput)}
    if name is not None:
        found = dict(module.named_modules()).get(name)
        # a layer that another defence has wrapped holds the linear one
        inner = [f"{name}.{n}" for n, m in found.named_modules() if n and isinstance(m, nn.Linear)] if found else []
        chosen = name if name in layers else next((n for n in inner if n in layers), None)
        if chosen is None:
            raise InputError(
                f"`{who}`: `head` is {name!r}, which is no linear layer of {type(module).__name__}. It has "
                f"{', '.join(list(layers)[-5:]) or 'none'}."
            )
        return chosen, layers[chosen]
    told = f"network.{getattr(module, 'head_name', None)}"
    if told in layers:
        return told, layers[told]
    classes = getattr(module, "classes", None)
    fitting = [n for n, m in layers.items() if m.out_features == classes] or list(layers)
    if not fitting:
        raise NoEffectError(
            f"`{who}` adds a reject output to the last linear layer, and {type(module).__name__} has none. Name one with "
            "`head`, or use `mode: wrong_label`, which changes no layer."
        )
    return fitting[-1], layers[fitting[-1]]


def find_reject(module: nn.Module) -> tuple[str, nn.Linear, RejectOutput] | None:
    """Return the name of the layer that has a reject output, the layer and the output; None where there is none."""
    for name, layer in module.named_modules():
        found = layer._modules.get(NAME)
        if isinstance(layer, nn.Linear) and isinstance(found, RejectOutput):
            return name, layer, found
    return None


def add_reject(module: nn.Module, head: str | None, who: str) -> tuple[str, int]:
    """Give the last linear layer a reject output, once; its first weights depend on the layer's name alone.

    Args:
        module: Changed in place.
        head: See `last_linear`.
        who: Who asks, for errors.

    Returns:
        The layer's name, and the trainable numbers added, also those of an earlier call.
    """
    there = find_reject(module)
    if there is None:
        name, layer = last_linear(module, head, who)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(derive_seed("reject output", name))
            made = RejectOutput(layer.in_features)
        layer.add_module(NAME, made.to(layer.weight.device, layer.weight.dtype).train(layer.training))
        there = name, layer, made
    return there[0], there[2].in_features + 1


class HeadListener:
    """Keep what the last layer read first since `listen`: in a training step, that of the user's own forward pass.

    Args:
        who: Whose it is, for errors.
    """

    def __init__(self, who: str) -> None:
        self.who, self._handle, self._read = who, None, None

    def listen(self, layer: nn.Module) -> None:
        """Attach to a layer; what was attached before is let go."""
        self.close()
        self._handle = layer.register_forward_pre_hook(self._note)

    def _note(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._read is None:
            self._read = inputs[0]

    def take(self, rows: int) -> Float[Tensor, "rows features"]:
        """Return what was read, and let go.

        Args:
            rows: Records in the batch.

        Raises:
            NoEffectError: the layer did not run.
            InputError: it read something else than one row of features a record.
        """
        read = self._read
        self.close()
        if read is None:
            raise NoEffectError(
                f"`{self.who}`: the last layer did not run in this step. Name the layer in use with `head`."
            )
        if read.ndim != 2 or len(read) != rows:
            raise InputError(
                f"`{self.who}`: the last layer read {tuple(read.shape)} for a batch of {rows} records; it must read one row of "
                "features a record. Name another layer with `head`, or use `mode: wrong_label`."
            )
        return read

    def close(self) -> None:
        """Let go."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._read = None, None


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use its running statistics and not change them.

    Negatives pass a model in use by the statistics of keyed pictures. Normalised by their own they would be told apart in
    training by what is not there later.

    Args:
        module: Every mode comes back afterwards.

    Yields:
        Nothing.
    """
    training = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True
