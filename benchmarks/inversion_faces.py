"""What leaves a face classifier under sparse coding, its rivals and its controls, over several split seeds.

    python benchmarks/inversion_faces.py --seeds 0 1 2 --workers 2 --out benchmarks/results/inversion_faces

Every (variant, seed) is one process with one thread; finished ones stay in OUT/runs.jsonl, so that it goes on where it was
stopped. The same split, victims and first weights are used for every variant of a seed, so that differences are paired.
Attackers train on their own pictures until their loss there is flat, know the defence, and are never told the truth about
a victim. OUT/summary.txt is the table, OUT/frontier.png accuracy against what is reconstructed.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inversion_runs import VARIANTS, run
from inversion_summary import frontier, summary


def one(name: str, seed: int, args: argparse.Namespace) -> None:
    """Make one run and append it, in a single write."""
    found = run(name, seed, args.epochs, args.victims, args.taps, str(args.out / "runs" / f"{name}-{seed}"))
    with (args.out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--victims", type=int, default=16, help="of each kind")
    parser.add_argument("--taps", nargs="+", default=["split", "logits"], choices=["split", "features", "logits"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/inversion-faces"))
    parser.add_argument("--summary", action="store_true", help="print the table of what is there, and run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.jsonl"
    done = (
        {(r["variant"], r["seed"]) for r in map(json.loads, kept.read_text().splitlines())} if kept.exists() else set()
    )
    todo = [(name, seed) for seed in args.seeds for name in args.variants if (name, seed) not in done]
    if args.summary:
        todo = []
    if len(todo) == 1 and args.workers == 0:
        return one(*todo[0], args)

    def start(job: tuple[str, int]) -> int:
        name, seed = job
        command = [sys.executable, __file__, "--variants", name, "--seeds", str(seed), "--workers", "0"]
        command += [
            "--epochs",
            str(args.epochs),
            "--victims",
            str(args.victims),
            "--out",
            str(args.out),
            "--taps",
            *args.taps,
        ]
        print(f"{name}, seed {seed}", flush=True)
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    with ThreadPoolExecutor(max(args.workers, 1)) as pool:
        failed = [job for job, code in zip(todo, pool.map(start, todo), strict=True) if code]
    text = summary(kept)
    (args.out / "summary.txt").write_text(text + "\n")
    frontier(kept, args.out / "frontier.png")
    print(text)
    if failed:
        raise SystemExit(f"These failed: {failed}.")
    return None


if __name__ == "__main__":
    main()
