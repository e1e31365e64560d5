"""A federation's folders: the server's and each client's configuration, made from one recipe."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_privacy.core.run_folder import write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.federated.private_state import private_folder

__all__ = ["SETTINGS", "Settings", "client_config", "read_settings", "server_config", "write_folders"]

SETTINGS = "federation.json"
_AROUND = ("MembershipSplit", "CanaryData")
_VAULT = "keys.safetensors"


@dataclass(frozen=True)
class Settings:
    """What all parties of a federation agree on.

    Args:
        clients: How many there are.
        rounds: How many rounds.
        local_epochs: Epochs that a client trains in a round.
        strategy: Of Flower's.
        local: What is not shared beside the secrets.
        timeout: Seconds that a client may take for a round.
    """

    clients: int
    rounds: int
    local_epochs: int = 1
    strategy: str = "FedAvg"
    local: str = "none"
    timeout: float = 3600.0


def read_settings(folder: Path) -> Settings:
    """Return what `write_folders` wrote into a party's folder."""
    return Settings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))


def client_config(raw: dict[str, Any], folder: Path, number: int, settings: Settings) -> dict[str, Any]:
    """Return one client's configuration: its share of the data, and a vault and a site of its own for every lock.

    Args:
        raw: The recipe's configuration.
        folder: The client's.
        number: Of the client, from 0.
        settings: Of the federation.

    Raises:
        InputError: the recipe has no data, or names a vault, which all clients would share.
    """
    own = _with_defences(raw)
    own["data"] = _share(raw.get("data"), number, settings.clients)
    if (lock := own["defences"].get("key_lock")) is not None:
        if lock.get("key") is not None:
            raise InputError(
                "`federate` makes a vault for each client, in its private folder, and the recipe names one for all. Leave "
                "`defences.key_lock.key` out."
            )
        lock |= {"key": f"vault:{folder / 'private' / _VAULT}#master", "site": f"client-{number}"}
    if (affine := own["defences"].get("private_affine")) is not None:
        affine |= {"private": str(folder / "private" / "affine")}
    return own | {"run_dir": str(folder), "run_name": None}


def server_config(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the server's configuration: the same layers, no key, no audits.

    Args:
        raw: The recipe's configuration.
        folder: The server's.
    """
    return _with_defences(raw) | {"run_dir": str(folder), "run_name": None, "audits": {}}


def write_folders(root: Path, raw: dict[str, Any], settings: Settings) -> tuple[Path, list[Path]]:
    """Make the folders of all parties.

    Args:
        root: The federation's folder.
        raw: The recipe's configuration.
        settings: Of the federation.

    Returns:
        The server's folder and the clients'.

    Raises:
        InputError: there is a federation already.
    """
    server = (root / "server").resolve()
    clients = [(root / f"client-{number}").resolve() for number in range(settings.clients)]
    if there := sorted(str(p) for p in (server, *root.glob("client-*")) if p.exists()):
        raise InputError(
            f"{root} holds a federation already ({Path(there[0]).name}), and a federation cannot be continued. Take another "
            "--run_name, or move that one away."
        )
    configs = [client_config(raw, folder, number, settings) for number, folder in enumerate(clients)]
    for folder, config in [(server, server_config(raw, server)), *zip(clients, configs, strict=True)]:
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_atomically(folder / SETTINGS, json.dumps(asdict(settings), indent=1))
    for folder in clients:
        private_folder(folder / "private")
        if "private_affine" in raw.get("defences", {}):
            private_folder(folder / "private" / "affine")
    return server, clients


def _with_defences(raw: dict[str, Any]) -> dict[str, Any]:
    defences = {name: dict(spec) for name, spec in (raw.get("defences") or {}).items() if spec is not None}
    return {**{k: v for k, v in raw.items() if k != "config"}, "defences": defences}


def _share(data: Any, number: int, clients: int) -> dict[str, Any]:
    if not data:
        raise InputError(
            "The recipe has no `data`, and a federation divides a datamodule among its clients. Add `data:`."
        )
    args = data.get("init_args") or {}
    if data["class_path"].rpartition(".")[2] in _AROUND:
        return {**data, "init_args": {**args, "inner": _share(args["inner"], number, clients)}}
    return {
        "class_path": "lightning_privacy.datamodules.ClientPart",
        "init_args": {"inner": data, "part": number, "parts": clients, "seed": 0},
    }
