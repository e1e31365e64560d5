"""What chosen layers computed inside one call of the user's training step, kept for the defences that read it afterwards."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_privacy.core.taps import TapRecorder, find_tap
from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["StepTaps"]


class StepTaps:
    """Listen to layers from the start of a batch until a defence takes what they computed.

    A defence calls `listen` in ``on_train_batch_start``, `take` in ``objective`` and `close` in ``on_exception`` and
    ``teardown``. Of each layer the first output with a graph is kept: that of the user's own forward pass, since other
    defences run the model again only after the user's step. Nothing stays attached to the module between batches.

    Args:
        defence: Whose taps they are, for errors.
        names: Dotted names or globs; see `find_tap`.

    Example:
        >>> import torch
        >>> net, taps = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), StepTaps("mine", ["0"])
        >>> taps.listen(net)
        >>> first = net(torch.zeros(4, 2)); second = net(torch.ones(5, 2))
        >>> taps.take(rows=4)["0"].shape
        torch.Size([4, 3])
    """

    def __init__(self, defence: str, names: Sequence[str]) -> None:
        self.defence, self.names = defence, tuple(names)
        self._recorder: TapRecorder | None = None
        self._handles: list[RemovableHandle] = []
        self._first: dict[str, Tensor] = {}

    def listen(self, module: nn.Module) -> None:
        """Attach to the layers; what was attached before (a step that the user skipped) is let go.

        Args:
            module: Whose layers.

        Raises:
            NoEffectError: a name matches no layer.
            InputError: a name matches several, or the module blends pictures.
        """
        self.close()
        if getattr(module, "mixup", 0):
            raise InputError(
                f"`{self.defence}` holds the layers' outputs against the batch's own pictures and labels, but "
                f"{type(module).__name__} trains on blends of them (mixup={module.mixup}). Set mixup to 0."
            )
        self._recorder = recorder = TapRecorder(module, self.names)
        # Registered after the recorder's own hooks, hence called after them.
        self._handles = [
            find_tap(module, name)[1].register_forward_hook(partial(self._keep, recorder, name)) for name in self.names
        ]

    def _keep(self, recorder: TapRecorder, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        value = recorder.values[name]
        if value.requires_grad:
            self._first.setdefault(name, value)

    def take(self, rows: int) -> dict[str, Tensor]:
        """Return the outputs by the names given, stop listening and let the graph go.

        Args:
            rows: Records in the batch; a tap must have one row a record.

        Raises:
            NoEffectError: a layer was not run, or no trainable weight lies before it.
            InputError: an output has not one row a record.
        """
        recorder, first = self._recorder, self._first
        if recorder is None:
            raise NoEffectError(
                f"`{self.defence}` was not told of the start of this batch, so that nothing was read at "
                f"{', '.join(self.names)}. Train with `Trainer.fit`, which calls `on_train_batch_start` of every callback."
            )
        self._recorder = None
        self.close()
        recorder.take()  # says which layer did not run at all
        frozen = [name for name in self.names if name not in first]
        if frozen:
            raise NoEffectError(
                f"`{self.defence}` reads {', '.join(frozen)}, which took no gradient in the training step: no trainable "
                "weight lies before it, so that there is nothing to defend. Name a layer that is trained."
            )
        for name, value in first.items():
            if value.ndim < 2 or len(value) != rows:
                raise InputError(
                    f"`{self.defence}` reads {name}, which gave {tuple(value.shape)} for a batch of {rows} records; name a "
                    "layer with one row a record."
                )
        return first

    def close(self) -> None:
        """Stop listening and let the graph go."""
        for handle in self._handles:
            handle.remove()
        if self._recorder is not None:
            self._recorder.close()
        self._recorder, self._handles, self._first = None, [], {}
