"""Which locks on a face classifier hold, against what attackers, over several split seeds.

    python benchmarks/lock_faces.py --seeds 0 1 2 --workers 2 --out runs/lock-faces

Every (variant, seed) is one process with one thread; finished ones stay in OUT/runs.jsonl, so that it goes on where it was
stopped. All runs share keys and edits in OUT/private, which is to be kept private. The split, the attacker's pictures and
budget, and the order of batches are the same for every variant of a seed. Attackers make their choices on pictures of their
own. OUT/summary.txt is the table, OUT/frontier.png accuracy with the key against what attackers reach.
"""

import argparse
from itertools import product
from pathlib import Path

from lock_runs import run
from lock_summary import frontier, summary
from lock_variants import VARIANTS
from resumable import Job, append_line, read_lines, run_missing


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1, help="0: the one run that is named, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/lock-faces"))
    parser.add_argument("--summary", action="store_true", help="print the table of what is there, and run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.jsonl"
    if args.workers == 0:
        return append_line(kept, run(args.variants[0], args.seeds[0], args.epochs, args.out))
    done = {(r["variant"], str(r["seed"])) for r in read_lines(kept) if r["epochs"] == args.epochs}
    wanted = [(name, str(seed)) for seed, name in product(args.seeds, args.variants)]
    jobs: list[Job] = [] if args.summary else [job for job in wanted if job not in done]

    def arguments(job: Job) -> list[str]:
        own = ["--variants", job[0], "--seeds", job[1], "--workers", "0"]
        return [*own, "--epochs", str(args.epochs), "--out", str(args.out)]

    failed = run_missing(__file__, jobs, arguments, args.workers)
    if not kept.exists():
        raise SystemExit("There are no runs yet.")
    text = summary(kept)
    (args.out / "summary.txt").write_text(text + "\n")
    frontier(kept, args.out / "frontier.png")
    print(text)
    if failed:
        raise SystemExit(f"These failed: {failed}.")
    return None


if __name__ == "__main__":
    main()
