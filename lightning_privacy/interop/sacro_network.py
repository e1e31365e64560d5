"""The source of a torch class that rebuilds a network, for those who have torch and nothing of ours."""

import keyword
import re
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_graph import recorded_graph, refusal

__all__ = ["NetworkSource", "load_network", "network_source"]

CLASS_NAME = "Network"
_LARGEST_CONSTANT = 4096  # numbers of a buffer that are written into the source
_IMPORTS = {
    "torch": "",
    "inf": "from math import inf\n",
    "nan": "from math import nan\n",
    "device": "from torch import device\n",
}
"""How names that torch.fx uses in its code are had."""
_HEADER = '''"""A network rebuilt from its graph: torch alone is needed."""

{imports}import torch
from torch import nn


def _place(root, path, part):
    """Put a layer or a constant where the network's names expect it."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if isinstance(part, nn.Module):
        root.add_module(name, part)
    else:
        root.register_buffer(name, part, persistent=False)


class {name}(nn.Module):
    """Pictures (batch, channels, height, width) to class scores."""

    def __init__(self):
        super().__init__()
        self.classes = list(range({classes}))
{layers}
{forward}'''


@dataclass(frozen=True)
class NetworkSource:
    """A network as text and weights.

    Args:
        source: Python source that defines the class ``Network``, built without arguments.
        state: Its state dict.
    """

    source: str
    state: dict[str, Tensor]


def network_source(
    network: nn.Module, pictures: Float[Tensor, "batch channels height width"], classes: int
) -> NetworkSource:
    """Return a network as source that imports torch alone.

    The forward pass is the graph that `torch.fx` records; the layers are built anew by their constructors, so that a
    network which another program trains from scratch starts from torch's own random weights.

    Args:
        network: Takes one tensor; made of layers of ``torch.nn`` and functions of torch. Its mode is changed.
        pictures: Some pictures; two are enough.
        classes: Columns of its output.

    Raises:
        InputError: the source would not be the same network, in evaluation or in training.
    """
    graph = recorded_graph(network, pictures)
    layers: dict[str, nn.Module] = {}
    lines: list[str] = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target not in layers:
            layers[node.target] = network.get_submodule(str(node.target))
            lines.append(f'_place(self, "{node.target}", nn.{layers[node.target]!r})')
        elif node.op == "get_attr":
            lines.append(_constant(network, str(node.target)))
    _check_layers(network, layers)
    code = graph.python_code("self")
    used = [name for name in sorted(code.globals) if re.search(rf"\b{re.escape(name)}\b", code.src)]
    unknown = [name for name in used if name not in _IMPORTS]
    if unknown:
        raise InputError(refusal(network, f"it calls {', '.join(unknown)}, which is not torch's"))
    source = _HEADER.format(
        imports="".join(_IMPORTS[name] for name in used),
        name=CLASS_NAME,
        classes=classes,
        layers="".join(f"        {line}\n" for line in dict.fromkeys(lines)),
        forward=re.sub(r"^(?=.)", "    ", code.src.strip() + "\n", flags=re.MULTILINE),
    )
    state = {
        f"{path}.{name}": value.detach().cpu().clone()
        for path, layer in layers.items()
        for name, value in layer.state_dict().items()
    }
    return NetworkSource(source, state)


def load_network(made: NetworkSource) -> nn.Module:
    """Return the network that a source and its weights make, in evaluation mode.

    Raises:
        InputError: the source does not run or the weights do not fit, so that nobody else could load it either.
    """
    space: dict[str, Any] = {}
    try:
        exec(compile(made.source, "model.py", "exec"), space)
        network = space[CLASS_NAME]()
        network.load_state_dict(made.state)
    except Exception as wrong:  # the source is made of the user's graph, so anything may be raised
        raise InputError(
            f"The network's source does not rebuild it ({_first_line(wrong)}); export its probabilities alone "
            '(`kind="probabilities"`).'
        ) from wrong
    return network.eval()


def _constant(network: nn.Module, path: str) -> str:
    *parents, name = path.split(".")
    owner = network.get_submodule(".".join(parents))
    value = getattr(owner, name)
    if isinstance(value, nn.Parameter) or not isinstance(value, Tensor) or value.numel() > _LARGEST_CONSTANT:
        raise InputError(refusal(network, f"it holds `{path}` outside a layer, so its first value is not known"))
    literal = f"torch.tensor({value.detach().cpu().tolist()!r}, dtype={value.dtype})"
    return f'_place(self, "{path}", {literal})'


def _check_layers(network: nn.Module, layers: dict[str, nn.Module]) -> None:
    seen: dict[int, str] = {}
    for path, layer in layers.items():
        if any(part in keyword.kwlist or (not part.isidentifier() and not part.isdigit()) for part in path.split(".")):
            raise InputError(refusal(network, f"its layer `{path}` has no plain name"))
        for name, value in layer.named_parameters():
            if id(value) in seen:
                raise InputError(refusal(network, f"`{path}.{name}` and `{seen[id(value)]}` are one weight"))
            seen[id(value)] = f"{path}.{name}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
