"""Many runs of one script, each in a process of its own with one thread, that go on where they were stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Job = tuple[str, ...]


def read_lines(kept: Path) -> list[dict[str, Any]]:
    """Return the runs that are there, one a line; none where there is no file yet."""
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []


def append_line(kept: Path, found: dict[str, Any]) -> None:
    """Add a run in a single write, so that two processes never mix their lines."""
    with kept.open("a") as file:
        file.write(json.dumps(found) + "\n")


def run_missing(script: str, jobs: Sequence[Job], arguments: Callable[[Job], list[str]], workers: int) -> list[Job]:
    """Run jobs, so many at a time, and return those that failed.

    Args:
        script: Started anew for each job.
        jobs: What is missing.
        arguments: Of the script for a job, by which it does that job itself and nothing else.
        workers: Processes at a time.
    """

    def start(job: Job) -> int:
        print(", ".join(job), flush=True)
        command = [sys.executable, script, *arguments(job)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.run(command, env=environment, check=False).returncode

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return [job for job, code in zip(jobs, pool.map(start, jobs), strict=True) if code]
