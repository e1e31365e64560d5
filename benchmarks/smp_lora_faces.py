"""SMP-LoRA on the private faces over several split seeds: the defence, its ablations and its controls.

    python benchmarks/smp_lora_faces.py --seeds 0 1 2 3 4 --workers 2 --out benchmarks/results/smp_lora_faces

Every (variant, seed) is one process with one thread; finished ones stay in OUT/runs.jsonl. The attacks are fitted and
chosen on records that are not scored (`lightning_privacy.callbacks.audits`). The undefended run is attacked at every kept
epoch: that is the early-stopping frontier.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "undefended": {},
    "undefended_members_and_aux": {"members_and_aux": True},
    "recommended": {"defence": {}},
    "mp_calibrated": {"defence": {"mode": "mp", "strength": 0.3}},
    "paper_smp": {"setting": "paper"},
    "paper_mp": {"setting": "paper", "defence": {"mode": "mp"}},
    "released": {"setting": "released"},
    "ablate_members_only": {"defence": {"gain": "members"}},
    "ablate_no_replay": {"defence": {"replay": 0}},
    "ablate_error_map": {"defence": {"proxy": "error_map"}},
    "ablate_pooled_map": {"defence": {"proxy": "pooled_map"}},
    "ablate_independent_draw": {"defence": {"shared_forward": False}},
    "ablate_memory": {"defence": {"memory": 0.8}},
    "ablate_strength_1": {"defence": {"strength": 1.0}},
    "ablate_strength_100": {"defence": {"strength": 100.0}},
    "ablate_growing_strength": {"defence": {"strength": 1.0, "strength_end": 100.0}},
}


def one(name: str, seed: int, epochs: int, every: int, out: Path) -> None:
    """Train and attack one variant on one split, and append what was measured."""
    from face_runs import Variant, train

    from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA

    spec = VARIANTS[name]
    defended = "defence" in spec or "setting" in spec
    build = getattr(SMPLoRA, spec.get("setting", ""), SMPLoRA)
    arguments = build(**spec.get("defence", {})).init_args if defended else None
    if arguments is not None:
        arguments.pop("seed")
    run = train(Variant(arguments, spec.get("members_and_aux", False)), seed, epochs, every=every)
    best = run.best_epoch()
    # The undefended run is attacked along its way: that is the early-stopping frontier.
    epochs_attacked = sorted(run.watch.val) if name == "undefended" else sorted({best, max(run.watch.val)})
    record = {
        "variant": name,
        "seed": seed,
        "epochs": epochs,
        "val": run.watch.val,
        "val_untuned": run.loss("val", None),
        "holdout_untuned": run.loss("holdout", None),
        "best_epoch": best,
        "holdout_best": run.loss("holdout", best),
        "seconds_per_step": sorted(run.watch.step_seconds)[len(run.watch.step_seconds) // 2],
        "losses": {
            e: {
                role: run.loss(role, e)
                for role in ("eval_member", "holdout", "attack_nonmember", "aux_nonmember")
                if run.split.indices(role)
            }
            for e in epochs_attacked
        },
        "attacks": {
            e: [
                {
                    "attack": r.attack,
                    "strongest": r.strongest,
                    "fit_auroc": r.fit_auroc,
                    "auroc": r.metrics["auroc"].value,
                    "converged": r.converged,
                    "member_scores": r.extra["member_scores"],
                    "nonmember_scores": r.extra["nonmember_scores"],
                }
                for r in run.attack(e)
            ]
            for e in epochs_attacked
        },
    }
    with (out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def summary(out: Path) -> None:
    """Print a table over seeds: mean AUROC of the strongest attack with its interval, and the share of the gain kept."""
    from lightning_privacy.metrics.membership import pool_over_seeds

    records = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    undefended = {r["seed"]: min(r["val"].values()) for r in records if r["variant"] == "undefended"}
    print(f"{'variant':30} {'seeds':>5} {'AUROC, last epoch':>24} {'gain kept':>10} {'s/step':>8}")
    for name in VARIANTS:
        mine = [r for r in records if r["variant"] == name]
        if not mine:
            continue
        last = [r["attacks"][max(r["attacks"], key=int)] for r in mine]
        strongest = [next(a for a in attacks if a["strongest"]) for attacks in last]
        metric = pool_over_seeds([(tensor(a["member_scores"]), tensor(a["nonmember_scores"])) for a in strongest])
        kept = [
            (r["val_untuned"] - min(r["val"].values())) / (r["val_untuned"] - undefended[r["seed"]])
            for r in mine
            if r["seed"] in undefended
        ]
        interval = f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
        share = f"{100 * sum(kept) / len(kept):.0f} %" if kept else "-"
        seconds = sum(r["seconds_per_step"] for r in mine) / len(mine)
        print(f"{name:30} {len(mine):5d} {interval:>24} {share:>10} {seconds:8.3f}")


def tensor(values: list[float]) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="epochs between validations, kept weights and attacks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/smp_lora_faces"))
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        one(args.one[0], int(args.one[1]), args.epochs, args.every, args.out)
        return
    log = args.out / "runs.jsonl"
    done = {(r["variant"], r["seed"]) for r in map(json.loads, log.read_text().splitlines())} if log.exists() else set()
    todo = [(v, s) for s in args.seeds for v in args.variants if (v, s) not in done]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    common = ["--epochs", str(args.epochs), "--every", str(args.every), "--out", str(args.out)]

    def start(job: tuple[str, int]) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--one", job[0], str(job[1]), *common]
        subprocess.run(command, check=True, env=environment)

    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(start, todo))
    summary(args.out)


if __name__ == "__main__":
    main()
