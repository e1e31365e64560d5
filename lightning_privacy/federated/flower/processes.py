"""Processes that end together: each in a group of its own, found again by a mark in its environment."""

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Processes"]

_MARK = "LIGHTNING_PRIVACY_FEDERATION"
_PATIENCE = 5.0  # seconds between asking and killing, chosen here


class Processes:
    """Starts processes, and ends them and whatever they have started when the block is left.

    A request to end this process (SIGTERM) is taken as an interrupt while the block runs, so that a scheduler leaves nothing
    behind either. Only if this process is killed outright do the others stay.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._started: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self._before: Any = None

    def start(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start a process in a session of its own, so that an interrupt reaches this process alone, which ends the others.

        Args:
            name: For errors.
            command: Program and arguments.
            log: Where it prints; mode 0600.
            environment: All of it.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env={**environment, _MARK: self._mark},
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._started[name] = process, log

    def ended(self, name: str) -> int | None:
        """Return a process's exit status, or None while it runs."""
        return self._started[name][0].poll()

    def last_words(self, name: str, lines: int = 8) -> str:
        """Return the end of what a process printed."""
        text = self._started[name][1].read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])

    def __enter__(self) -> "Processes":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            if self._before is not None:
                signal.signal(signal.SIGTERM, self._before)

    def _end(self) -> None:
        # Those that were started last first: a client that loses its server would complain.
        for process, _log in reversed(list(self._started.values())):
            _signal(process.pid, signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and (self._running() or self._strays()):
            for stray in [] if self._running() else self._strays():  # Flower's own, whose parents are gone
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stray, signal.SIGTERM)
            time.sleep(0.05)
        for process, _log in self._started.values():
            _signal(process.pid, signal.SIGKILL)
            process.wait()
        for stray in self._strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)

    def _running(self) -> bool:
        return any(process.poll() is None for process, _log in self._started.values())

    def _strays(self) -> list[int]:
        """Return what our processes started in other sessions, where the system lists processes as files (Linux)."""
        wanted, found = f"{_MARK}={self._mark}".encode(), []
        own = {process.pid for process, _log in self._started.values()}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(place.name) not in own and wanted in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _signal(group: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)
