"""Two processes that train together, started once and used by every test that needs ranks."""

import atexit
import importlib
import importlib.util
import inspect
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

__all__ = ["RankError", "RankPool"]

GRACE = 5.0
"""Seconds that the other ranks get to report after one has failed; they may be waiting for it for ever."""


class RankError(RuntimeError):
    """A function failed, or did not end, on a rank of the pool; the message holds the rank's traceback."""


class RankPool:
    """Processes with a gloo group among them. They start at the first `run`, and again after a failure.

    In a function that runs on them, ``Trainer(strategy="ddp", devices=2, accelerator="cpu")`` joins the group and
    starts no processes of its own: ``LOCAL_RANK`` tells Lightning that somebody else has.

    Args:
        size: Ranks.
        timeout: Seconds that one call may take.
        start_timeout: Seconds that starting may take (importing torch and Lightning once a rank).

    Example:
        >>> with RankPool(2) as pool:                                        # doctest: +SKIP
        ...     pool.run("torch.distributed:get_rank")
        [0, 1]
    """

    def __init__(self, size: int = 2, timeout: float | int = 60, start_timeout: float | int = 300) -> None:
        self.size, self.timeout, self.start_timeout = size, timeout, start_timeout
        self._workers: list[tuple[Any, Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a function on every rank and return the results in rank order.

        Args:
            function: A function at the top of a module or test file, or ``"package.module:name"``.
            *args: Plain values, tensors, and what pickles by name.
            **kwargs: As args.

        Raises:
            RankError: it raised on a rank, or took longer than the pool's time. The pool then starts afresh.
        """
        target = function if isinstance(function, str) else _target(function)
        if not self._workers:
            self._start()
        try:
            for _, pipe in self._workers:
                pipe.send((target, args, kwargs))
        except OSError as dead:
            self.close()
            raise RankError("A rank of the pool has died between two calls.") from dead
        return self._collect(target, self.timeout)

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        workers, self._workers = self._workers, []
        for _, pipe in workers:
            with suppress(OSError):
                pipe.send(None)
        for process, pipe in workers:
            process.join(timeout=0.5 if process.is_alive() else 0)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        context = get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        store = str(Path(self._folder.name, "store"))
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        atexit.register(self.close)
        self._collect("the start", self.start_timeout)

    def _collect(self, what: str, timeout: float | int) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        pending = {pipe: rank for rank, (_, pipe) in enumerate(self._workers)}
        while pending and (left := deadline - time.monotonic()) > 0:
            ready = wait_for(list(pending), left)
            for pipe in [p for p in pending if p in ready]:
                rank = pending.pop(pipe)
                try:
                    ok, value = pipe.recv()
                except (EOFError, OSError):
                    ok, value = False, f"the process died (exit code {self._workers[rank][0].exitcode})"
                (results if ok else failures)[rank] = value
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE)
        if failures or pending:
            self.close()
            late = [f"rank {rank} did not answer within {timeout:.0f} s" for rank in pending.values() if not failures]
            told = [f"rank {rank}: {text}" for rank, text in sorted(failures.items())]
            raise RankError(f"{what} failed:\n" + "\n".join(told + late))
        return [results[rank] for rank in range(self.size)]


def _target(function: Callable[..., Any]) -> str:
    """Name a function so that another process finds it: by its module, or by its file for a test file."""
    if "<locals>" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} is defined inside a function; ranks cannot find it by name.")
    file = inspect.getfile(inspect.unwrap(function))
    if function.__module__ == "__main__" or Path(file).stem.startswith("test_"):
        return f"{file}:{function.__qualname__}"
    return f"{function.__module__}:{function.__qualname__}"


def _find(target: str) -> Callable[..., Any]:
    where, _, name = target.rpartition(":")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"rank_file_{Path(where).stem}", where)
        if spec is None or spec.loader is None:
            raise ImportError(f"{where} cannot be imported.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    return getattr(module, name)


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Answer calls until told to stop; runs in a process of its own."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_NTASKS"):
        os.environ.pop(name, None)  # they would make Lightning take another environment than its own
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        pipe.send((True, None))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        return
    clean = dict(os.environ)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while (call := pipe.recv()) is not None:
            target, args, kwargs = call
            try:
                answer = (True, _find(target)(*args, **kwargs))
            except BaseException:
                answer = (False, traceback.format_exc())
            pipe.send(answer)
            os.environ.clear()
            os.environ.update(clean)
    if dist.is_initialized():
        dist.destroy_process_group()
