"""A run's configuration, checked for its outer shape: the one place where reports read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_privacy.errors import InputError
from lightning_privacy.report.yaml_file import read_yaml

__all__ = ["arguments_of", "group_of", "read_settings"]

_GROUPS = ("defences", "audits")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the configuration of a run; a run that has no file has an empty one.

    Args:
        path: Its ``config.yaml``.

    Raises:
        InputError: the file cannot be read, is empty or no mapping, or ``defences`` or ``audits`` are no mappings of names
            to their settings.
    """
    if not path.exists():
        return {}
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        found = "is empty" if settings is None else f"holds {_kind(settings)} and no mapping"
        raise InputError(f"The configuration {path} {found}. Restore the file that `lightning-privacy fit` wrote.")
    for group in _GROUPS:
        _check(settings.get(group), group, path)
    return settings


def group_of(settings: Mapping[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """Return the settings by name of one group of a configuration, without those that are switched off by null.

    Args:
        settings: What `read_settings` returned.
        group: ``defences`` or ``audits``.
    """
    return {str(name): spec or {} for name, spec in (settings.get(group) or {}).items() if spec is not None}


def arguments_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a defence or audit, whether they stand alone or beside a ``class_path``.

    Example:
        >>> arguments_of({"class_path": "a.B", "init_args": {"shadows": 2}}), arguments_of({"shadows": 2})
        ({'shadows': 2}, {'shadows': 2})
    """
    return (spec.get("init_args") or {}) if "class_path" in spec or "init_args" in spec else spec


def _check(found: Any, group: str, path: Path) -> None:
    if found is None:
        return
    if not isinstance(found, dict):
        raise InputError(f"`{group}` of {path} is {_kind(found)}; it must be a mapping of names to settings.")
    for name, spec in found.items():
        inner = spec.get("init_args") if isinstance(spec, dict) else None
        for value, where in ((spec, f"{group}.{name}"), (inner, f"{group}.{name}.init_args")):
            if value is not None and not isinstance(value, dict):
                raise InputError(f"`{where}` of {path} is {_kind(value)}; it must be a mapping, or null for none.")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"`{str(value)[:40]}`"
