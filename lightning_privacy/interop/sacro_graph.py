"""The graph of a network's forward pass, recorded beside a pass over real pictures."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from lightning_privacy.errors import InputError

__all__ = ["is_simple_layer", "recorded_graph", "refusal"]


class _Recorder(fx.Tracer):
    """Records a graph and, to answer a forward pass that asks for shapes, what each node is for some pictures.

    Only truth values are taken from the pictures: a check passes as it does for them and leaves no trace, and everything
    else, the number of records above all, stays a symbol.
    """

    def __init__(self, pictures: Float[Tensor, "batch channels height width"]) -> None:
        super().__init__()
        self.pictures = pictures
        self.values: dict[fx.Node, Any] = {}
        self.evaluating = False

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            known_args, known_kwargs = (map_aggregate(part, self._value) for part in (args, kwargs))
            self.evaluating = True
            try:
                self.values[proxy.node] = self._evaluated(kind, target, known_args, known_kwargs)
            finally:
                self.evaluating = False
        return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        # A layer that computes needs its weights themselves, not symbols for them.
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.values[obj.node])

    def _value(self, argument: Any) -> Any:
        return self.values[argument.node] if isinstance(argument, fx.Proxy) else argument

    def _evaluated(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return args[0] if args else self.pictures
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        owner: Any = self.root
        if kind == "get_attr":
            for name in target.split("."):
                owner = getattr(owner, name)
            return owner
        layer = owner.get_submodule(target)
        if not is_simple_layer(layer):
            raise InputError(refusal(owner, f"its layer {type(layer).__name__} is none of torch's simple layers"))
        mode, layer.training = layer.training, False  # statistics must not move
        try:
            return layer.forward(*args, **kwargs)  # not called: calls are being recorded
        finally:
            layer.training = mode


def recorded_graph(network: nn.Module, pictures: Float[Tensor, "batch channels height width"]) -> fx.Graph:
    """Return the graph of a network's forward pass, which must be the same in training and in evaluation.

    Args:
        network: Takes one tensor; its mode is changed.
        pictures: Some pictures, by which checks of shapes are passed.

    Raises:
        InputError: the pass cannot be recorded, or it differs in training.
    """
    graphs = []
    for training in (True, False):
        network.train(training)
        try:
            recorder = _Recorder(pictures)
            graph = recorder.trace(network)
        except InputError:
            raise
        except Exception as wrong:  # whatever the user's own forward pass raises when it meets a symbol
            line = (str(wrong).strip().splitlines() or [""])[0]
            reason = f"its forward pass cannot be recorded ({type(wrong).__name__}: {line})"
            raise InputError(refusal(network, reason)) from wrong
        for node in reversed(graph.nodes):
            node.type = None  # annotations may be anything, and would have to be imported
            if node.op.startswith("call") and not node.users and not isinstance(recorder.values[node], Tensor):
                graph.erase_node(node)  # what was asked for a check; a tensor nobody reads may have changed another
        graphs.append(graph)
    in_training, in_evaluation = (graph.python_code("self").src for graph in graphs)
    if in_training != in_evaluation:
        reason = "outside its layers it does something else in training, such as a dropout function"
        raise InputError(refusal(network, reason))
    return graphs[1]


def is_simple_layer(layer: nn.Module) -> bool:
    """Return whether a layer is one of ``torch.nn`` itself, without parts, which its own text describes.

    Example:
        >>> is_simple_layer(nn.Linear(2, 3)), is_simple_layer(nn.MultiheadAttention(4, 2))
        (True, False)
    """
    kind = type(layer)
    return getattr(torch.nn, kind.__name__, None) is kind and next(layer.children(), None) is None


def refusal(network: nn.Module, reason: str) -> str:
    """Return the sentence that says why a network cannot be exported, and what can."""
    return (
        f"{type(network).__name__} cannot be written as a torch class of its own: {reason}. Export its probabilities alone "
        '(`kind="probabilities"`).'
    )
