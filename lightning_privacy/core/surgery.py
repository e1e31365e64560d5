"""Replace layers of a module by type or by name."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_privacy.core.defence import SurgeryReport
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import InputError, NoEffectError, UnsupportedStrategyError

__all__ = ["replace_modules"]

_MADE_AT = "_replaced_at"
"""Attribute of a new layer: the names at which it was put in, with the trainable numbers that it added."""


def replace_modules(
    module: nn.Module,
    replacement: type[nn.Module],
    *,
    types: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    names: Sequence[str] = (),
    factory: Callable[[nn.Module], nn.Module] | None = None,
    seed: int = 0,
) -> SurgeryReport:
    """Replace sub-modules, outermost first; a replaced one is not searched further.

    New parameters and buffers take the old layer's device, dtype and mode. A second call finds the replacements by
    their class, reports them and changes nothing. Building them leaves the global random state alone, and a layer's
    first weights depend on ``seed`` and its name only, so that ranks agree.

    Args:
        module: Searched and changed in place; it is itself never replaced.
        replacement: Class of the new layers.
        types: Only layers of these classes; None for any.
        names: Only layers whose dotted name matches one of these: globs, in which ``*`` also crosses dots
            (``unet.*.norm1``), or regular expressions after ``re:`` that match the whole name. Empty for any.
        factory: Makes the new layer from the old one; by default the class itself.
        seed: Of the new layers.

    Returns:
        The replaced layers, the trainable numbers gained, and a layout of their names and the class's name.

    Raises:
        InputError: neither types nor names are given, a regular expression is broken, or the factory returned something
            else than a ``replacement``.
        NoEffectError: a name matches no layer.
        UnsupportedStrategyError: the module is already wrapped for several processes.

    Example:
        >>> class Twice(nn.Sequential):
        ...     def __init__(self, inner):
        ...         super().__init__(inner, inner)
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_modules(net, Twice, types=nn.Linear).layers
        ('0',)
        >>> replace_modules(net, Twice, types=nn.Linear).parameters_added
        0
    """
    if types is None and not names:
        raise InputError("Surgery needs `types`, `names` or both: without them it would replace every layer.")
    _refuse_wrapped(module)
    matchers = [_matcher(pattern) for pattern in names]
    hits = dict.fromkeys(names, False)
    done: dict[nn.Module, nn.Module] = {}
    added: dict[str, int] = {}
    made = _made_before(module, replacement)
    found = list(_candidates(module, replacement, types, names, matchers, hits, made))
    untouched = [pattern for pattern, hit in hits.items() if not hit]
    if untouched:
        raise NoEffectError(
            f"No layer of {type(module).__name__} that can become a {replacement.__name__} is called {untouched}. "
            f"Its layers are called {', '.join(n for n, _ in list(module.named_modules())[1:8])}, ..."
        )
    for parent, attribute, name, old in found:
        if name in made or isinstance(old, replacement):
            added[name] = made.get(name, 0)
            continue
        if _in_data_parallel(module):
            raise UnsupportedStrategyError(
                f"{name} would be replaced after the model was wrapped for several processes: the new weights would be "
                "neither synchronised nor optimised. Do surgery in `configure_model`, as defences do."
            )
        if old not in done:
            done[old] = _build(old, module, replacement, factory or replacement, derive_seed(seed, "surgery", name))
        new = done[old]
        marks = new.__dict__.setdefault(_MADE_AT, {})
        added[name] = marks[name] = 0 if marks else _trainable(new) - _trainable(old)  # a shared layer counts once
        setattr(parent, attribute, new)
    layout: dict[str, Any] = {"layers": list(added), "replacement": replacement.__name__}
    return SurgeryReport(tuple(added), sum(added.values()), layout)


def _made_before(module: nn.Module, replacement: type[nn.Module]) -> dict[str, int]:
    return {k: n for m in module.modules() if isinstance(m, replacement) for k, n in getattr(m, _MADE_AT, {}).items()}


def _candidates(
    module: nn.Module,
    replacement: type[nn.Module],
    types: type[nn.Module] | tuple[type[nn.Module], ...] | None,
    names: Sequence[str],
    matchers: Sequence[Callable[[str], bool]],
    hits: dict[str, bool],
    made: Mapping[str, int],
    prefix: str = "",
) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    for attribute, child in module._modules.items():  # named_children would skip the second name of a shared layer
        if child is None:
            continue
        name = f"{prefix}{attribute}"
        named = [pattern for pattern, matches in zip(names, matchers, strict=True) if matches(name)]
        # A replacement may since have been wrapped by another defence: it is then known by the name it was made at.
        done = isinstance(child, replacement) or name in made
        if (named or not names) and (done or types is None or isinstance(child, types)):
            hits.update(dict.fromkeys(named, True))
            yield module, attribute, name, child
        elif not isinstance(child, replacement):
            yield from _candidates(child, replacement, types, names, matchers, hits, made, f"{name}.")


def _build(
    old: nn.Module,
    root: nn.Module,
    replacement: type[nn.Module],
    factory: Callable[[nn.Module], nn.Module],
    seed: int,
) -> nn.Module:
    kept = {id(x) for x in [*old.modules(), *old.parameters(), *old.buffers()]}
    like = next((p for p in [*old.parameters(), *root.parameters()] if p.is_floating_point()), None)
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []):
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it also seeds GPUs that nobody has touched
        with torch.device("meta" if like is not None and like.is_meta else "cpu"):
            new = factory(old)
    if not isinstance(new, replacement):
        raise InputError(
            f"The factory returned a {type(new).__name__} where surgery asked for a {replacement.__name__}."
        )
    for part in new.modules():
        if id(part) in kept:
            continue
        part.training = old.training
        if like is not None:
            for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                if id(tensor) not in kept:
                    dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
                    tensor.data = tensor.data.to(like.device, dtype)
    return new


def _matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: fnmatchcase(name, pattern)
    try:
        compiled = re.compile(pattern.removeprefix("re:"))
    except re.error as broken:
        raise InputError(
            f"`{pattern}` is no regular expression: {broken}. Without `re:` it is read as a glob."
        ) from broken
    return lambda name: compiled.fullmatch(name) is not None


def _refuse_wrapped(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if (
            isinstance(part, DistributedDataParallel | nn.DataParallel)
            or "FullyShardedDataParallel" in type(part).__name__
        ):
            raise UnsupportedStrategyError(
                f"Surgery on a {type(part).__name__} ({name or 'the module itself'}) is refused: new layers would be "
                "neither synchronised nor optimised. Do surgery on the plain module, before it is wrapped."
            )


def _in_data_parallel(module: nn.Module) -> bool:
    trainer = getattr(module, "_trainer", None)
    strategy = getattr(trainer, "strategy", None)
    return isinstance(getattr(strategy, "model", None), DistributedDataParallel)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
