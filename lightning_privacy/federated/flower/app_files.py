"""The Flower app that is submitted: two names, for all that it does is in this package, which every node has installed."""

from pathlib import Path

__all__ = ["write_app"]

_PROJECT = """[project]
name = "lightning-privacy-app"
version = "1.0.0"
description = "Loads the apps that stand in lightning_privacy, which is installed on every node"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "federation:server"
clientapp = "federation:client"

[tool.flwr.app.config]
"""
_MODULE = '''"""The apps of this federation."""

from {module} import client, server

__all__ = ["client", "server"]
'''


def write_app(folder: Path, module: str) -> Path:
    """Write the files of an app whose ``client`` and ``server`` stand in an importable module.

    Args:
        folder: Made, if absent; nothing private belongs in it, for every client gets what is in it.
        module: Import path of the module.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
    (folder / "federation.py").write_text(_MODULE.format(module=module), encoding="utf-8")
    return folder
