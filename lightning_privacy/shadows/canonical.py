"""Plain forms of settings: what two runs must have in common is compared as text."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_privacy.datamodules.identity import item_digest
from lightning_privacy.errors import InputError

__all__ = ["canonical", "class_sources", "digest", "state_digest"]

DEEPEST = 8  # chosen here: settings are shallow, and an object that refers to itself must come to an end
_OTHERS = ("torch", "lightning", "builtins", "typing", "collections", "abc", "numpy")


def digest(value: Any) -> str:
    """Return the sha256 of a plain value's canonical JSON.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state dict: names, types, shapes and bytes."""
    return item_digest({name: value.detach().cpu() for name, value in state.items()})


def class_sources(classes: Sequence[type]) -> dict[str, str]:
    """Return a digest of the source of each class and of its bases; torch's and Lightning's are left out.

    Args:
        classes: Classes whose code takes part in training.

    Example:
        >>> class_sources([torch.nn.Linear])
        {}
    """
    every = {base for cls in classes for base in cls.__mro__ if base.__module__.split(".")[0] not in _OTHERS}
    return {_path(cls): _source(cls) for cls in sorted(every, key=_path)}


def canonical(value: Any, where: str, loose: bool = False, depth: int = 0) -> Any:
    """Return a value as JSON: objects by class and attributes, functions by name and source, tensors by digest.

    Args:
        value: A setting.
        where: Its name, for the error.
        loose: Let what has no such form stand by its class alone, instead of an error.
        depth: Of the recursion.

    Raises:
        InputError: the value, or something in it, has no such form.

    Example:
        >>> canonical({"lr": 0.1, "size": (2, 3)}, "settings")
        {'lr': 0.1, 'size': [2, 3]}
    """

    def inner(part: Any) -> Any:
        return canonical(part, where, loose, depth + 1)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return item_digest(value)
    if depth > DEEPEST:
        return _unknown(value, where, loose)
    if isinstance(value, nn.Module):
        return [_path(type(value)), state_digest(value.state_dict())]
    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(part) for part in value), key=repr)
    if isinstance(value, partial):
        return {"partial": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
    if isinstance(value, type):
        return [_path(value), class_sources([value])]
    if isinstance(value, MethodType):
        return [inner(value.__func__), _path(type(value.__self__))]
    if isinstance(value, BuiltinFunctionType):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return {
            "function": f"{value.__module__}:{value.__qualname__}",
            "source": _source(value),
            "closure": inner(cells),
            "defaults": inner([value.__defaults__, value.__kwdefaults__]),
        }
    if hasattr(value, "__dict__"):
        return {"class": _path(type(value)), "source": class_sources([type(value)]), "state": inner(vars(value))}
    return _unknown(value, where, loose)


def _unknown(value: Any, where: str, loose: bool) -> str:
    if loose:
        return f"<{_path(type(value))}>"
    raise InputError(
        f"`{where}` holds a {_path(type(value))}, from which no key of the shadow models' files can be made: a changed "
        "setting could not be told from an unchanged one. Use plain values, or give `ShadowPool(signature=...)` a text "
        "that says it."
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _source(thing: type | Callable[..., Any]) -> str:
    try:
        text = inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or in a file that is no imported module
        text = repr(_bytecode(thing))
    return sha256(text.encode()).hexdigest()


def _bytecode(thing: Any) -> Any:
    """Return the instructions of a function, or of every function of a class, as far as Python shows them."""
    if isinstance(thing, type):
        return [(name, _bytecode(part)) for name, part in sorted(vars(thing).items()) if not name.startswith("__")] + [
            _bytecode(vars(thing).get("__init__"))
        ]
    if isinstance(thing, classmethod | staticmethod):
        return _bytecode(thing.__func__)
    if isinstance(thing, property):
        return _bytecode(thing.fget)
    code = thing if isinstance(thing, CodeType) else getattr(thing, "__code__", None)
    if code is None:
        plain = thing is None or isinstance(thing, bool | int | float | str)
        return thing if plain else _path(type(thing))
    constants = [
        _bytecode(part)
        if isinstance(part, CodeType)
        else sorted(map(str, part))
        if isinstance(part, frozenset)
        else str(part)
        for part in code.co_consts
    ]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants
