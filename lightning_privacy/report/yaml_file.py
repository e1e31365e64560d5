"""YAML as people write it, read strictly: a key that is there twice is a mistake and not the last one's value."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lightning_privacy.errors import InputError

__all__ = ["read_yaml"]


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` is there twice; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str = "") -> Any:
    """Return what a YAML file holds, as plain values; no object of a class is ever made.

    Args:
        path: The file.
        what: What it is, for errors: ``The policy``; nothing for the path alone.

    Raises:
        InputError: it cannot be read, is no UTF-8, is no YAML, is nested too deeply, or a mapping has a key twice.
    """
    said = f"{what} {path}".strip()
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except OSError as gone:
        raise InputError(f"{said} cannot be read: {gone.strerror}.") from gone
    except RecursionError as deep:
        raise InputError(f"{said} cannot be read as YAML: it is nested too deeply.") from deep
    except (ValueError, yaml.YAMLError) as wrong:
        raise InputError(f"{said} cannot be read as YAML: {' '.join(str(wrong).split())}.") from wrong
