"""Objects named by import path, as YAML files name functions."""

from importlib import import_module
from typing import Any

from lightning_privacy.errors import InputError

__all__ = ["import_object"]


def import_object(path: Any) -> Any:
    """Return the object that ``package.module.name`` or ``package.module:name`` names; anything but a string as it is.

    Raises:
        InputError: the module or the name in it does not exist.
    """
    if not isinstance(path, str):
        return path
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"`{path}` cannot be imported ({error}). Give `package.module.function`, importable from where you start."
        ) from error
