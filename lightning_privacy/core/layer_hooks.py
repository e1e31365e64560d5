"""Changing what flows into or out of a layer without changing the layer: names, weights and state dict stay as they are."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_privacy.core.defence import SurgeryReport
from lightning_privacy.core.taps import find_tap
from lightning_privacy.errors import InputError, NoEffectError

__all__ = ["LayerHook", "attach", "check_attached", "check_ran", "hooks_of"]


class LayerHook:
    """A hook on one layer that passes on a function of the layer's output, or of its first input.

    An ordinary object with plain attributes, so that it is copied and pickled with the module.

    Args:
        owner: Name of the defence.
        tap: How the user named the layer.
        layer: The layer's full name when it was attached.
        change: Tensor -> tensor.
        where: ``output`` or ``input``.
    """

    def __init__(
        self, owner: str, tap: str, layer: str, change: Callable[[Tensor], Tensor], where: Literal["output", "input"]
    ) -> None:
        self.owner, self.tap, self.layer, self.change, self.where = owner, tap, layer, change, where
        self.ran = False

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        """Return the changed output (as a forward hook) or the changed inputs (as a forward pre-hook)."""
        value = output[0] if self.where == "output" else args[0] if args else None
        if not isinstance(value, Tensor):
            raise InputError(
                f"`{self.owner}` changes the {self.where} of `{self.layer}`, which is a {type(value).__name__} and no "
                "tensor; name a layer inside it, or one that passes one tensor on."
            )
        self.ran = True
        changed = self.change(value)
        return changed if self.where == "output" else (changed, *args[1:])


def hooks_of(module: nn.Module, owner: str) -> list[LayerHook]:
    """Return a defence's hooks on the layers of a module, in the order of the layers.

    Args:
        module: Whose layers.
        owner: Name of the defence.
    """
    hooks = (h for m in module.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()))
    return [hook for hook in hooks if isinstance(hook, LayerHook) and hook.owner == owner]


def attach(
    module: nn.Module,
    owner: str,
    taps: Sequence[str],
    change: Callable[[Tensor], Tensor],
    where: Literal["output", "input"] = "output",
) -> SurgeryReport:
    """Attach a change to layers, once; a second call renews the change and touches nothing else.

    A changed output is what every other hook on the layer sees, whether it was registered before or comes later.

    Args:
        module: Whose layers.
        owner: Name of the defence.
        taps: Dotted names or globs, each of which means one layer; see `find_tap`.
        change: Tensor -> tensor; must pickle.
        where: Whether the layer's output or its first input is changed.

    Returns:
        The layers, no parameters, and a layout that names them.

    Raises:
        NoEffectError: a name matches no layer.
        InputError: a name matches several, or the module already has such a change at other layers.

    Example:
        >>> net = nn.Sequential(nn.Identity())
        >>> attach(net, "double", ["0"], lambda z: 2 * z).layers
        ('0',)
        >>> import torch; net(torch.ones(1)).item(), list(net.state_dict())
        (2.0, [])
    """
    there = hooks_of(module, owner)
    if there and [hook.tap for hook in there] != list(taps):
        raise InputError(
            f"This {type(module).__name__} already has `{owner}` at {', '.join(h.layer for h in there)}, and is now asked to "
            f"have it at {', '.join(taps)}. Build a new module, or name the same layers."
        )
    for hook in there:
        hook.change = change
    for tap, (name, layer) in [(tap, find_tap(module, tap)) for tap in taps if not there]:
        hook = LayerHook(owner, tap, name, change, where)
        if where == "output":
            layer.register_forward_hook(hook, prepend=True)
        else:
            layer.register_forward_pre_hook(hook)
        there.append(hook)
    layers = tuple(hook.layer for hook in there)
    return SurgeryReport(layers, 0, {"layers": list(layers), "changes": where})


def check_attached(module: nn.Module, owner: str) -> None:
    """Check that what was attached is still there: what replaces a layer loses the layer's hooks.

    Raises:
        NoEffectError: it is not.
    """
    if not hooks_of(module, owner):
        raise NoEffectError(
            f"`{owner}` is no longer attached to any layer of {type(module).__name__}: something replaced the layer "
            "afterwards (`sync_batchnorm` replaces BatchNorm layers, other defences replace others). Name a layer that "
            "contains it or follows it."
        )


def check_ran(module: nn.Module, owner: str) -> None:
    """Check that every layer with a change has been called since it was attached.

    Raises:
        NoEffectError: one has not; its weights are used in another way, or not at all.
    """
    silent = [hook.layer for hook in hooks_of(module, owner) if not hook.ran]
    if silent:
        raise NoEffectError(
            f"`{owner}`: the training step did not call {', '.join(silent)}, so that nothing was changed there; name "
            "layers that the forward pass calls."
        )
