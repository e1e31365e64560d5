"""Names of defences and audits: what the command line offers and what a checkpoint's manifest refers to."""

import importlib
import re
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from lightning_privacy.errors import InputError

__all__ = [
    "AUDITS",
    "DEFENCES",
    "Registry",
    "audit_names",
    "audits",
    "defence_names",
    "defences",
    "register_audit",
    "register_defence",
]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_BUILT_INS = "lightning_privacy.callbacks"
"""Registers everything we ship when it is imported; a string, because core must not depend on callbacks."""


@dataclass
class Registry:
    """Classes by name: ours, registered at import, and other packages', found by entry points.

    Classes are given themselves or as ``"package.module:Class"``; the latter are imported when first asked for, so
    that listing names costs nothing.

    Args:
        kind: What is registered, for errors: ``defence`` or ``audit``.
        group: Entry-point group in which other packages announce theirs.
        built_ins: Module whose import registers ours; None for none.
    """

    kind: str
    group: str
    built_ins: str | None = _BUILT_INS
    _targets: dict[str, type | str] = field(default_factory=dict)

    def register(self, name: str, target: type | str) -> None:
        """Register a class under a name; the same class twice is fine.

        Args:
            name: Snake case; the key in YAML and in manifests, never to change afterwards.
            target: The class, or ``"package.module:Class"``.

        Raises:
            InputError: the name is malformed or belongs to another class.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"{self.kind} name `{name}` is not snake case; use lower-case words joined by `_`.")
        there = self._targets.get(name)
        if there is not None and _path(there) != _path(target):
            raise InputError(
                f"{self.kind} name `{name}` is wanted by {_path(target)} and taken by {_path(there)}. Rename one of "
                "them."
            )
        if not (isinstance(there, type) and isinstance(target, str)):
            self._targets[name] = target

    def names(self) -> list[str]:
        """Return all names: ours in the order of registration, then other packages' by name; imports none of them.

        Raises:
            InputError: an entry point takes a name that exists.
        """
        return list(self._all())

    def load(self, name: str) -> type:
        """Return one class.

        Raises:
            InputError: there is no such name, or its class cannot be imported.
        """
        every = self._all()
        if name not in every:
            raise InputError(f"There is no {self.kind} `{name}`. Registered: {', '.join(every) or 'none'}.")
        return self._class_of(name, every[name])

    def _class_of(self, name: str, target: type | str | EntryPoint) -> type:
        try:
            found = _import(target) if isinstance(target, str) else target.load() if _is_entry(target) else target
        except Exception as failure:  # whatever another package's import raises
            raise InputError(
                f"{self.kind} `{name}` cannot be imported from {_path(target)}{_owner(target)}: "
                f"{type(failure).__name__}: {failure}. Repair or uninstall that package."
            ) from failure
        if not isinstance(found, type):
            raise InputError(f"{self.kind} `{name}` must be a class, but {_path(target)} is {type(found).__name__}.")
        return found

    def classes(self) -> dict[str, type]:
        """Return every class by name, in the order of `names`.

        Raises:
            InputError: as for `load`; a broken entry point is an error, because a defence that is silently absent
                looks like one that was never asked for.
        """
        return {name: self._class_of(name, target) for name, target in self._all().items()}

    def _all(self) -> dict[str, type | str | EntryPoint]:
        if self.built_ins is not None:
            importlib.import_module(self.built_ins)
        every: dict[str, type | str | EntryPoint] = dict(self._targets)
        for entry in sorted(entry_points(group=self.group), key=lambda e: e.name):
            if not _NAME.fullmatch(entry.name):
                raise InputError(f"Entry point `{entry.name}`{_owner(entry)} of group {self.group} is not snake case.")
            there = every.get(entry.name)
            if there is not None and _path(there) != entry.value:
                raise InputError(
                    f"{self.kind} name `{entry.name}` is wanted by {entry.value}{_owner(entry)} and taken by "
                    f"{_path(there)}{_owner(there)}. Uninstall one of the packages."
                )
            every.setdefault(entry.name, entry)
        return every


def _is_entry(target: object) -> bool:
    return isinstance(target, EntryPoint)


def _path(target: type | str | EntryPoint) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, EntryPoint):
        return target.value
    return f"{target.__module__}:{target.__qualname__}"


def _owner(target: type | str | EntryPoint) -> str:
    if isinstance(target, EntryPoint) and target.dist is not None:
        return f" (package `{target.dist.name}`)"
    return ""


def _import(path: str) -> object:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


DEFENCES = Registry("defence", "lightning_privacy.defences")
AUDITS = Registry("audit", "lightning_privacy.audits")


def register_defence(name: str, target: type | str) -> None:
    """Register a `Defence` under a name; see `Registry.register`."""
    DEFENCES.register(name, target)


def register_audit(name: str, target: type | str) -> None:
    """Register an audit callback under a name; see `Registry.register`."""
    AUDITS.register(name, target)


def defence_names() -> list[str]:
    """Return the names of all defences without importing them."""
    return DEFENCES.names()


def audit_names() -> list[str]:
    """Return the names of all audits without importing them."""
    return AUDITS.names()


def defences() -> dict[str, type]:
    """Return all defences by name."""
    return DEFENCES.classes()


def audits() -> dict[str, type]:
    """Return all audits by name."""
    return AUDITS.classes()
