"""Plain forms of settings: what two runs must have in common is compared as text."""

import copyreg
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from inspect import unwrap
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_privacy.datamodules.identity import item_digest
from lightning_privacy.errors import InputError
from lightning_privacy.shadows.sources import bytecode, class_sources, file_digest, is_standard, path_of, source_digest

__all__ = ["canonical", "class_sources", "digest", "is_plain", "module_state", "state_digest"]

DEEPEST = 60  # chosen here: settings are shallow, and a list that holds itself must come to an end
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_OF_LIGHTNING = (frozenset(vars(L.LightningModule())) - {"training", "_automatic_optimization"}) | {
    *("_hparams_initial", "_hparams_name"),  # `_hparams` once more
    "prepare_data",  # set by `build_shadow` where there are several ranks
}


def digest(value: Any) -> str:
    """Return the sha256 of a plain value's canonical JSON.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return sha256(_json(value).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state dict: names, types, shapes and bytes."""
    return item_digest({name: value.detach().cpu() for name, value in state.items()})


def module_state(module: nn.Module) -> dict[str, Any]:
    """Return the digest of each weight and each statistic of a module, also of those that no checkpoint keeps.

    Example:
        >>> sorted(module_state(nn.Linear(1, 1)))
        ['bias', 'weight']
    """
    return {
        name: _tensor(value) if isinstance(value, torch.Tensor) else canonical(value, name, loose=True)
        for name, value in {**dict(module.named_buffers()), **module.state_dict()}.items()
    }


def canonical(value: Any, where: str, loose: bool = False) -> Any:
    """Return a value as JSON: objects by class and state, functions by source and instructions, tensors by digest.

    Two equal values have one form, in every process and on every rank and device: no address, no order of a set, no
    trainer is part of it.

    Args:
        value: A setting.
        where: Its name, for the error.
        loose: Let what has no such form stand by its class alone, instead of an error.

    Raises:
        InputError: the value, or something in it, has no such form.

    Example:
        >>> canonical({"lr": 0.1, "size": (2, 3)}, "settings")
        {'lr': 0.1, 'size': [2, 3]}
        >>> canonical(nn.Dropout(0.1), "layer") == canonical(nn.Dropout(0.2), "layer")
        False
    """
    return _Forms(loose, {}).of(value, where, 0)


class _Forms:
    """Makes forms. An object that was met before is a number: it may refer to itself.

    Args:
        loose: See `canonical`.
        met: What was met, by address, and its number; kept, so that no address is used twice.
    """

    def __init__(self, loose: bool, met: dict[int, tuple[int, Any]]) -> None:
        self.loose, self.met = loose, met

    def of(self, value: Any, where: str, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Path | torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        if isinstance(value, torch.device):
            return value.type  # ranks have devices of other numbers
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return item_digest(value) if value.dtype != object else self.of(value.tolist(), where, depth + 1)
        if isinstance(value, bytes | bytearray):
            return sha256(value).hexdigest()
        if isinstance(value, torch.Generator):
            return ["generator", value.device.type, _tensor(value.get_state())]
        if isinstance(value, L.Trainer):
            return "<trainer>"  # each shadow model has its own
        if depth > DEEPEST:
            return self._unknown(value, where, "it is nested too deeply")
        if isinstance(value, Mapping):
            return self._mapping(value, where, depth)
        if type(value) in (list, tuple):
            return [self.of(part, where, depth + 1) for part in value]
        if isinstance(value, set | frozenset):
            return sorted((self._apart(part, where, depth) for part in value), key=_json)
        if id(value) in self.met:
            return {"met": self.met[id(value)][0]}
        self._meet(value)
        if isinstance(value, nn.Module):
            return self._module(value, where, depth)
        if isinstance(value, type):
            return [path_of(value), class_sources([value])]
        if isinstance(value, ModuleType):
            file = getattr(value, "__file__", None)
            return [value.__name__, None if is_standard(value.__name__) or not file else file_digest(Path(file))]
        return self._other(value, where, depth)

    def _meet(self, value: Any) -> None:
        self.met.setdefault(id(value), (len(self.met), value))

    def _apart(self, value: Any, where: str, depth: int) -> Any:
        """Return a form whose numbers do not depend on what was met in the same set before."""
        return _Forms(self.loose, dict(self.met)).of(value, where, depth + 1)

    def _mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> Any:
        if all(isinstance(key, str) for key in value):
            return {key: self.of(value[key], f"{where}.{key}", depth + 1) for key in sorted(value)}
        return sorted(
            ([self._apart(key, where, depth), self._apart(part, where, depth)] for key, part in value.items()),
            key=_json,
        )

    def _module(self, value: nn.Module, where: str, depth: int) -> Any:
        parts = dict(value.named_modules())
        for part in parts.values():
            self._meet(part)
        return {
            "structure": [
                [name, path_of(type(part)), self._attributes(part, f"{where}.{name}".strip("."), depth)]
                for name, part in parts.items()
            ],
            "sources": class_sources([type(part) for part in parts.values()]),
            "state": digest(module_state(value)),
        }

    def _attributes(self, part: nn.Module, where: str, depth: int) -> Any:
        own = _OF_LIGHTNING if isinstance(part, L.LightningModule) else _OF_MODULES
        state: Any = vars(part)
        if type(part).__getstate__ is not object.__getstate__:  # such as a metric's, which leaves out its wrappers
            with suppress(RuntimeError):  # of a layer with parametrizations, which refuses
                state = part.__getstate__()
        if not isinstance(state, Mapping):
            return self.of(state, where, depth + 1)
        hooks = {
            name: list(state[name].values())
            for name in own
            if name.endswith("_hooks") and "state_dict" not in name and state.get(name)
        }
        rest = {name: each for name, each in state.items() if name not in own and not (name == "_hparams" and not each)}
        return self.of({**rest, **hooks}, where, depth + 1)

    def _other(self, value: Any, where: str, depth: int) -> Any:
        def inner(part: Any, name: str = "") -> Any:
            return self.of(part, f"{where}{name}", depth + 1)

        if isinstance(value, partial):
            return {"partial": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
        if isinstance(value, MethodType):
            return {"method": inner(value.__func__), "of": inner(value.__self__)}
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            return [f"{value.__module__}:{value.__qualname__}", None if isinstance(owner, ModuleType) else inner(owner)]
        if isinstance(value, FunctionType):
            return self._function(value, inner)
        if isinstance(value, L.LightningDataModule):  # its records stand in the key apart
            plain = {name: each for name, each in vars(value).items() if name != "trainer" and is_plain(each)}
            return {"class": path_of(type(value)), "source": class_sources([type(value)]), "state": inner(plain)}
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            made: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as reason:  # whatever an object says that cannot be taken apart
            return self._unknown(value, where, str(reason))
        if isinstance(made, str):
            whole = getattr(value, "__wrapped__", None)
            return {"global": f"{getattr(value, '__module__', None)}:{made}", "wraps": inner(whole)}
        make, state = made[0], made[2] if len(made) > 2 else None
        given, items = tuple(made[1]), [list(each) for each in made[3:5] if each is not None]
        new = make is getattr(copyreg, "__newobj__", None)
        return {
            "class": path_of(type(value)),
            "source": class_sources([type(value)]),
            **({} if new else {"made by": inner(make)}),
            "args": inner(given[1:] if new else given),
            "state": inner(state),
            "items": inner(items),
        }

    def _function(self, value: FunctionType, inner: Any) -> Any:
        standard = is_standard(value.__module__)
        wrapped = getattr(value, "__wrapped__", None)
        if standard:
            value = unwrap(value)  # ours may be wrapped by a checker of types, in one process and not in another
        form = {
            "function": path_of(value),
            "source": None if standard else source_digest(value),
            "closure": inner([_content(cell) for cell in value.__closure__ or ()]),
            "state": inner({name: each for name, each in vars(value).items() if not name.startswith("__")}),
        }
        if wrapped is not None and not standard:
            # A wrapper's instructions are its file's, or were made by a checker of types, with addresses in them.
            return {**form, "wraps": inner(wrapped)}
        # Two lambdas may share their name, their file and even their line.
        code = None if standard else digest(bytecode(value))
        return {**form, "code": code, "defaults": inner([value.__defaults__, value.__kwdefaults__])}

    def _unknown(self, value: Any, where: str, reason: str) -> str:
        kind = path_of(type(value))
        if self.loose:
            return f"<{kind}>"
        raise InputError(
            f"`{where}` holds a {kind}, from which no key of the shadow models' files can be made ({reason}): a changed "
            "setting could not be told from an unchanged one. Use plain values there, or give a text that says what "
            "decides the training as `ShadowPool(signature=...)`, for an audit as `shadow_build.signature`."
        )


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, or lists, tuples and dictionaries of these.

    Example:
        >>> is_plain({"lr": [0.1, None]}), is_plain({"lr": torch.ones(1)})
        (True, False)
    """
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never given a value
        return None


def _tensor(value: torch.Tensor) -> str:
    if is_lazy(value):
        return "<no values yet>"
    if value.is_meta:
        return f"<meta {value.dtype} {tuple(value.shape)}>"
    dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    return item_digest(dense.cpu())
