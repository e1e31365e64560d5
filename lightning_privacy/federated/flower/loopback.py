"""A federation on one machine: Flower's SuperLink, and a SuperNode of its own for every client, over loopback."""

import os
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_privacy.core.run_folder import write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.federated.flower.app_files import write_app
from lightning_privacy.federated.flower.processes import Processes

__all__ = ["CLIENT", "ERROR", "SERVER", "Loopback", "free_port", "run_on_loopback"]

CLIENT, SERVER = "LIGHTNING_PRIVACY_CLIENT", "LIGHTNING_PRIVACY_SERVER"
"""Environment variables in which a process finds its folder."""
ERROR = "error.txt"
_HOST = "127.0.0.1"
_STARTING = 120.0  # seconds for the SuperLink to listen, chosen here: imports on a busy machine
_CONNECTION = "loopback"
_CONFIG = '[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\naddress = "{address}"\ninsecure = true\n'


@dataclass(frozen=True)
class Loopback:
    """A federation to run.

    Args:
        server: The server's folder.
        clients: The clients' folders; each has its private folder inside.
        module: Import path of the module with the apps ``client`` and ``server``.
        port: Of the SuperLink; None takes a free one.
        through: Address that clients connect to in place of the SuperLink's, such as a recorder's; None for the SuperLink's.
    """

    server: Path
    clients: Sequence[Path]
    module: str
    port: int | None = None
    through: str | None = None


def free_port(wanted: int | None = None) -> int:
    """Return a port of loopback that nobody listens on.

    Args:
        wanted: This one; None for any.

    Raises:
        InputError: it is taken.
    """
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, wanted or 0))
        except OSError as taken:
            raise InputError(
                f"Port {wanted} of {_HOST} cannot be used ({taken.strerror}). Name another with --port, or leave it out."
            ) from taken
        return int(probe.getsockname()[1])


def run_on_loopback(federation: Loopback, watch: Callable[[], None] = lambda: None) -> None:
    """Run a federation to its end; whatever happens, no process is left.

    Connections are not encrypted: nothing of this leaves the machine. Real clients use Flower's TLS.

    Args:
        federation: Folders and apps.
        watch: Called a few times a second while it runs.

    Raises:
        InputError: a client, the server or one of Flower's processes failed; the message is theirs.
    """
    port = free_port(federation.port)
    address = f"{_HOST}:{port}"
    names = [f"client {number}" for number in range(len(federation.clients))]
    with Processes() as processes:
        environment = _environment(federation.server)
        options = ["--insecure", "--disable-runtime-dependency-installation", "--host", _HOST, "--port", str(port)]
        log = federation.server / "flower"
        processes.start("superlink", [_program("flower-superlink"), *options], log / "superlink.log", environment)
        _wait_for(processes, port)
        for number, (name, folder) in enumerate(zip(names, federation.clients, strict=True)):
            node = ["--insecure", "--superlink", federation.through or address, "--port", str(free_port())]
            node += ["--node-config", f"partition-id={number}"]
            own = _environment(folder) | {CLIENT: str(folder.resolve())}
            processes.start(name, [_program("flower-supernode"), *node], folder / "flower" / "supernode.log", own)
        app = write_app(federation.server / "flower" / "app", federation.module)
        write_atomically(log / "home" / "config.toml", _CONFIG.format(name=_CONNECTION, address=address))
        submit = [_program("flwr"), "run", str(app), _CONNECTION, "--stream"]
        processes.start("submission", submit, log / "run.log", environment)
        while processes.ended("submission") is None:
            _check(federation, processes, names)
            watch()
            time.sleep(0.2)
        _check(federation, processes, names)
        watch()
        if not (federation.server / "global.safetensors").exists():
            raise InputError(
                f"The federation ended without a result. Flower's last words: {processes.last_words('submission')}"
            )


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of one party: its own Flower home, and neither telemetry nor a look for updates."""
    scripts = os.pathsep.join([str(Path(sys.executable).parent), sysconfig.get_path("scripts")])
    kept = {name: value for name, value in os.environ.items() if name not in (CLIENT, SERVER)}
    home = folder / "flower" / "home"
    home.mkdir(parents=True, exist_ok=True)
    return kept | {
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        SERVER: str(folder.resolve()),
    }


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise InputError(
            f"Flower's program `{name}` is not installed. Install it: `pip install 'lightning-privacy[flower]'`."
        )
    return found


def _wait_for(processes: Processes, port: int) -> None:
    until = time.monotonic() + _STARTING
    while time.monotonic() < until:
        if processes.ended("superlink") is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(0.1)
    raise InputError(
        f"Flower's SuperLink does not listen on {_HOST}:{port}. It said: {processes.last_words('superlink')}"
    )


def _check(federation: Loopback, processes: Processes, names: Sequence[str]) -> None:
    """Raise what any party says went wrong: a client first, for the server fails in its wake."""
    for name, folder in zip(names, federation.clients, strict=True):
        if said := _said(folder / "private" / ERROR):
            raise InputError(f"{name} failed: {said}")
        if (status := processes.ended(name)) is not None:
            raise InputError(f"{name} ended (status {status}) before the federation did: {processes.last_words(name)}")
    if said := _said(federation.server / ERROR):
        raise InputError(f"The server failed: {said}")
    if (status := processes.ended("superlink")) is not None:
        raise InputError(f"Flower's SuperLink ended (status {status}): {processes.last_words('superlink')}")


def _said(file: Path) -> str:
    """Return the first paragraph of an error file; the rest is its traceback."""
    return file.read_text(encoding="utf-8").split("\n\n")[0].strip() if file.is_file() else ""
