"""What shared updates tell of the records behind them: networks, pictures, batch sizes, defences, and every attack.

    python benchmarks/leakage_grid.py --workers 2 --out benchmarks/results/leakage_grid
    python benchmarks/leakage_grid.py --networks lenet --data faces --batches 1 --attacks dlg wrong_key joint

Every cell is one process with one thread; finished ones stay in OUT/runs.jsonl, so that it goes on where it was stopped.
Attackers know the defence and are not told the classes; restarts and the strongest attack are chosen by how well a
reconstruction explains the update. OUT/summary.txt is the table, OUT/frontier.png accuracy against what is rebuilt,
OUT/pictures the reconstructions. Networks are attacked before their first step and after training.
"""

import argparse
from itertools import product
from pathlib import Path

from leakage_runs import ATTACKS, NETWORKS, VARIANTS, run
from leakage_summary import frontier, summary
from resumable import Job, append_line, read_lines, run_missing

DATA = ("faces", "digits")


def key(line: dict) -> Job:
    """Return what tells one cell from another."""
    return tuple(str(line[name]) for name in ("seed", "batch", "network", "data", "variant"))


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--states", nargs="+", default=["initial", "trained"], choices=["initial", "trained"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--victims", type=int, default=20, help="updates attacked a cell")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1, help="0: the one cell that is named, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/leakage-grid"))
    parser.add_argument("--summary", action="store_true", help="print the table of what is there, and run nothing")
    args = parser.parse_args()
    kept = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.workers == 0:
        cell = args.networks[0], args.data[0], args.variants[0], args.batches[0], args.seeds[0]
        return append_line(kept, run(*cell, args))
    wanted = product(args.seeds, args.batches, args.networks, args.data, args.variants)
    done = {key(line) for line in read_lines(kept)}
    jobs = [] if args.summary else [job for job in (tuple(map(str, each)) for each in wanted) if job not in done]

    def arguments(job: Job) -> list[str]:
        seed, batch, network, data, variant = job
        own = ["--seeds", seed, "--batches", batch, "--networks", network, "--data", data, "--variants", variant]
        same = ["--victims", str(args.victims), "--epochs", str(args.epochs), "--out", str(args.out)]
        return [*own, *same, "--attacks", *args.attacks, "--states", *args.states, "--workers", "0"]

    failed = run_missing(__file__, jobs, arguments, args.workers)
    text = summary(kept)
    (args.out / "summary.txt").write_text(text + "\n")
    frontier(kept, args.out / "frontier.png")
    print(text)
    if failed:
        raise SystemExit(f"These failed: {failed}.")
    return None


if __name__ == "__main__":
    main()
