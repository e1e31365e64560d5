"""Reading what flows out of a layer of a module, by the layer's name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["TapRecorder", "find_tap", "recorded"]


def find_tap(module: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the one layer that a name means.

    Args:
        module: Where to look.
        name: A dotted name, or a glob in which ``*`` also crosses dots, that matches one layer alone.

    Returns:
        Its full name and the layer.

    Raises:
        NoEffectError: no layer has the name.
        InputError: several have it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> find_tap(net, "1")
        ('1', ReLU())
    """
    layers = dict(module.named_modules())
    if name and name in layers:
        return name, layers[name]
    found = [each for each in layers if each and fnmatchcase(each, name)]
    if not found:
        known = ", ".join([each for each in layers if each][:12])
        raise NoEffectError(
            f"No layer of {type(module).__name__} is called `{name}`. Its layers are called {known or 'nothing'}, ..."
        )
    if len(found) > 1:
        raise InputError(
            f"The tap `{name}` matches {len(found)} layers of {type(module).__name__} ({', '.join(found[:5])}, ...); "
            "name one of them."
        )
    return found[0], layers[found[0]]


def _first_tensor(output: Any, name: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, list | tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"The layer `{name}` returns a {type(output).__name__} and no tensor, so that nothing can be read at it; name a "
        "layer inside it."
    )


class TapRecorder:
    """Keep the latest outputs of some layers, with their graph.

    Args:
        module: Whose layers.
        names: Dotted names or globs; see `find_tap`.

    Raises:
        NoEffectError: a name matches no layer.
        InputError: a name matches several.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> recorder = TapRecorder(net, ["0"])
        >>> _ = net(torch.zeros(4, 2))
        >>> recorder.take()["0"].shape
        torch.Size([4, 3])
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.names = {given: find_tap(module, given)[0] for given in names}
        self.values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = [
            find_tap(module, given)[1].register_forward_hook(self._hook(given)) for given in names
        ]

    def _hook(self, given: str) -> Any:
        def keep(layer: nn.Module, args: Any, output: Any) -> None:
            self.values[given] = _first_tensor(output, self.names[given])

        return keep

    def take(self) -> dict[str, Tensor]:
        """Return the outputs by the names given, stop listening and let the graph go.

        Raises:
            NoEffectError: a layer was not run.
        """
        values, self.values = self.values, {}
        self.close()
        silent = [self.names[given] for given in self.names if given not in values]
        if silent:
            raise NoEffectError(
                f"The layer(s) {', '.join(silent)} did not run in the forward pass, so that nothing could be read at them; "
                "name layers that the forward pass calls."
            )
        return values

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.values = {}


@contextmanager
def recorded(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Listen to layers while the context lasts.

    Args:
        module: Whose layers.
        names: Dotted names or globs.

    Yields:
        The outputs by the names given, filled by forward passes inside the context.
    """
    recorder = TapRecorder(module, names)
    try:
        yield recorder.values
    finally:
        recorder.close()
