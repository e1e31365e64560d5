"""Runs of the command line, two at a time, each with one thread and its output in a file of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fit(name: str, arguments: Sequence[str], out: Path) -> int:
    """Train and attack one model by the command line, printed as a user would type it; its output goes beside the run."""
    line = ["fit", *arguments, "--run_name", f"{out.name}/{name}"]
    quoted = [f'"{each}"' if " " in each else each for each in line]
    print("\n" + " ".join(["$ lightning-privacy", *quoted]), flush=True)
    placed = [str(ROOT / each) if each.endswith(".yaml") else each for each in line]
    command = [sys.executable, "-m", "lightning_privacy.cli", *placed]
    # Two runs side by side with a thread each end sooner than one after the other with two.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_SILENT": "true"}
    log = out / f"{name}.log"
    began = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(
        f"{name}: {'done' if code == 0 else f'failed, see {log}'} after {time.perf_counter() - began:.0f} s", flush=True
    )
    return code


def fit_all(runs: Mapping[str, Sequence[str]], out: Path) -> bool:
    """Make a new folder and all runs in it; return whether all went well."""
    if out.exists():
        raise SystemExit(f"{out} holds an earlier demo; remove it (rm -r {out}) to run again.")
    out.mkdir(parents=True)
    print(f"{len(runs)} models, two at a time; each run's own output goes to {out}/NAME.log.")
    with ThreadPoolExecutor(2) as pool:
        return not any(pool.map(lambda each: fit(*each, out), runs.items()))
