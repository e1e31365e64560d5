"""Attack kept adapters of `smp_lora_faces.py` again, with more draws a record than the benchmark takes.

    python benchmarks/attack_again.py ADAPTERS --variants undefended recommended --seeds 0 1 2 3 4 --draws 8

ADAPTERS is the folder given to `smp_lora_faces.py --adapters`. An attacker who averages more draws sees more; the benchmark's
attacks take 20 errors a record, this script ten times DRAWS. Prints the strongest attack, chosen on records that are not
scored.
"""

import argparse
import json
from pathlib import Path

from face_runs import FaceRun, Variant, Watch, make_split
from face_summary import chosen, interval
from safetensors.torch import load_file
from smp_lora_faces import scores

from lightning_privacy.metrics.membership import pool_over_seeds
from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--variants", nargs="+", default=["undefended", "recommended"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epoch", type=int, default=100)
    parser.add_argument("--draws", type=int, default=8, help="noises at each of ten timesteps")
    args = parser.parse_args()
    references: dict[int, dict] = {seed: {} for seed in args.seeds}  # the same for all variants
    for variant in args.variants:
        pooled = []
        for seed in args.seeds:
            module = StableDiffusionLoRA(pretrained="tiny", seed=seed)
            module.configure_model()
            split = make_split(Variant(), seed)
            watch = Watch(1)
            watch.weights[args.epoch] = load_file(args.adapters / f"{variant}-{seed}-{args.epoch}.safetensors")
            run = FaceRun(module, split, watch, seed, references[seed])
            results = [scores(result) for result in run.attack(args.epoch, draws=args.draws)]
            pooled.append(chosen(results))
            line = {r["attack"]: round(r["auroc"], 3) for r in results}
            print(json.dumps({"variant": variant, "seed": seed, "auroc": line}), flush=True)
        print(f"{variant}: strongest attack with {10 * args.draws} errors a record {interval(pool_over_seeds(pooled))}")


if __name__ == "__main__":
    main()
