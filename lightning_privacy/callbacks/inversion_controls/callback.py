"""Controls as callbacks: what a defence must beat before its idea, and not a side effect of it, may be praised."""

from functools import partial
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_privacy.callbacks.inversion_controls.functional import keep_largest, standardised
from lightning_privacy.callbacks.inversion_controls.layers import FrozenRandomConv2d, NarrowPassage, first_convolutions
from lightning_privacy.core.channels import channels_of
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.core.layer_hooks import attach, check_attached, check_ran, hooks_of
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.core.taps import find_tap
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["FrozenRandomConv", "StandardizeOnly", "TopKActivations", "WidthMatchedBottleneck"]

_REQUIRES = frozenset({Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE})
_GUARANTEE = "none: a control, with which a defence is compared"


def _positive(control: str, argument: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{control}: `{argument}` is {value}; it must be at least 1.")


class StandardizeOnly(Defence):
    """Give what enters the first convolutions mean 0 and variance 1 in each picture: a control, no defence.

    Sparse-coding layers do so to their input; this shows what that alone hides.

    Args:
        layers: How many convolutions, counted from the first, at least 1.

    Raises:
        InputError: ``layers`` is out of range.

    Example:
        >>> StandardizeOnly().layers
        2
    """

    name: ClassVar[str] = "standardize_only"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    after: ClassVar[frozenset[str]] = frozenset({"frozen_random_conv", "sparse_coding", "variational_bottleneck"})
    requires = _REQUIRES
    guarantee = _GUARANTEE

    def __init__(self, layers: int = 2) -> None:  # arXiv 2403.14772: two sparse layers
        _positive("StandardizeOnly", "layers", layers)
        super().__init__()
        self.layers = layers

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Attach the standardisation to what enters the convolutions."""
        there = [hook.tap for hook in hooks_of(module, self.name)]
        names = there if len(there) == self.layers else first_convolutions(module, self.layers)
        return attach(module, self.name, names, standardised, "input")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the standardisation is still attached."""
        super().on_fit_start(trainer, pl_module)
        check_attached(pl_module, self.name)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Check that the convolutions were called."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        check_ran(pl_module, self.name)


class FrozenRandomConv(Defence):
    """Replace the first convolutions by frozen random ones of the same width and norm 1: a control, no defence.

    A sparse-coding layer with a fixed random dictionary has such filters; this shows what they do without sparsity.

    Args:
        layers: How many convolutions, counted from the first, at least 1.
        seed: Of the filters.

    Raises:
        InputError: ``layers`` is out of range, or the module has another number of such convolutions.

    Example:
        >>> FrozenRandomConv(layers=1).init_args
        {'layers': 1, 'seed': 0}
    """

    name: ClassVar[str] = "frozen_random_conv"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    requires = _REQUIRES
    breaks = frozenset({Property.STABLE_STATE_DICT})
    guarantee = _GUARANTEE

    def __init__(self, layers: int = 2, seed: int = 0) -> None:  # arXiv 2403.14772: two sparse layers
        _positive("FrozenRandomConv", "layers", layers)
        super().__init__()
        self.layers, self.seed = layers, seed

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Replace the convolutions."""
        there = [layer.place for layer in module.modules() if isinstance(layer, FrozenRandomConv2d)]
        if there and len(there) != self.layers:
            raise InputError(
                f"`{self.name}` is asked for {self.layers} layers of a {type(module).__name__} that already has frozen random "
                f"convolutions at {', '.join(there)}. Build a new module."
            )
        places = iter(names := there or first_convolutions(module, self.layers))
        made = lambda old: FrozenRandomConv2d(old, next(places))  # noqa: E731  surgery goes through them in this order
        return replace_modules(module, FrozenRandomConv2d, names=names, factory=made, seed=self.seed)


class TopKActivations(Defence):
    """Keep the largest activations of each picture at one layer and set the others to zero: a control, no defence.

    It is as sparse as a sparse code without the inference by which sparse coding chooses what to keep.

    Args:
        tap: Name of the layer, or a glob that matches one layer alone.
        fraction: Share of a picture's activations that is kept, above 0 and at most 1.
        by: ``magnitude``, the largest absolute values, or ``value``, the largest values.

    Raises:
        InputError: ``fraction`` is out of range.

    Example:
        >>> TopKActivations("network.conv1").fraction
        0.1
    """

    name: ClassVar[str] = "top_k_activations"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    after: ClassVar[frozenset[str]] = frozenset({"frozen_random_conv", "sparse_coding", "variational_bottleneck"})
    requires = _REQUIRES
    guarantee = _GUARANTEE

    def __init__(
        self,
        tap: str,
        fraction: float | int = 0.1,  # chosen here: in the middle of the shares that sparse codes leave active
        by: Literal["magnitude", "value"] = "magnitude",
    ) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"TopKActivations: `fraction` is {fraction}; it must be above 0 and at most 1.")
        if by not in ("magnitude", "value"):
            raise InputError(f"TopKActivations: `by` is {by!r}; it must be `magnitude` or `value`.")
        super().__init__()
        self.tap, self.fraction, self.by = tap, fraction, by

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Attach the choice to the layer's output."""
        return attach(module, self.name, [self.tap], partial(keep_largest, fraction=self.fraction, by=self.by))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the choice is still attached."""
        super().on_fit_start(trainer, pl_module)
        check_attached(pl_module, self.name)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Check that the layer was called."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        check_ran(pl_module, self.name)


class WidthMatchedBottleneck(Defence):
    """Pass a layer's output through fewer channels and back: a control, no defence.

    It passes as few numbers as a sparse code has active ones (`matched_width`), with every number used. The attacker must be
    shown the narrow tensor: name `exposed` as the audit's tap, which is ``<tap>.narrow``.

    Args:
        tap: Name of the layer, or a glob that matches one layer alone.
        width: Channels between, at least 1 and fewer than the layer has.
        features: Channels of the layer's output; None where the layer says it.
        seed: Of the two maps.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> WidthMatchedBottleneck("network.conv1", width=2).exposed
        'network.conv1.narrow'
    """

    name: ClassVar[str] = "width_matched_bottleneck"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    after: ClassVar[frozenset[str]] = frozenset({"frozen_random_conv", "sparse_coding", "variational_bottleneck"})
    requires = _REQUIRES
    breaks = frozenset({Property.STABLE_STATE_DICT})
    guarantee = _GUARANTEE

    def __init__(self, tap: str, width: int, features: int | None = None, seed: int = 0) -> None:
        _positive("WidthMatchedBottleneck", "width", width)
        super().__init__()
        self.tap, self.width, self.features, self.seed = tap, width, features, seed

    @property
    def exposed(self) -> str:
        """Name of the layer whose output leaves the client, once surgery is done."""
        return f"{self.tap}.narrow"

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Put the narrow passage behind the layer."""
        there = next((m for m in module.modules() if isinstance(m, NarrowPassage) and m.tap == self.tap), None)
        place = find_tap(module, self.tap)[0] if there is None else there.place

        def behind(layer: Any) -> NarrowPassage:
            return NarrowPassage(layer, channels_of(layer, place, self.features), self.width, self.tap, place)

        return replace_modules(module, NarrowPassage, names=[place], factory=behind, seed=self.seed)
