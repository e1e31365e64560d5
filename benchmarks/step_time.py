"""Step time of SMP-LoRA against plain LoRA: same module, same member batches, median of paired rounds.

    python benchmarks/step_time.py                                      # tiny Stable Diffusion, 64 px, CPU
    python benchmarks/step_time.py --architecture sd15 --device cuda    # SD v1.5's UNet at random weights, 512 px, bf16

Each round trains a few steps under every setting in turn, so that whatever else the machine does hits all of them alike; the
ratio is taken within a round. Printed as one JSON object.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from statistics import mean, median

import lightning.pytorch as L
import torch

from lightning_privacy.callbacks import SMPLoRA
from lightning_privacy.datamodules import Faces, MembershipSplit
from lightning_privacy.modules import StableDiffusionLoRA
from lightning_privacy.testing.toy_data import ToyImages

SETTINGS = {
    "plain": None,
    "paper_shared_forward": lambda n: SMPLoRA.paper(shared_forward=True, aux_batch_size=1),
    "paper": lambda n: SMPLoRA.paper(aux_batch_size=1),
    "recommended": lambda n: SMPLoRA(),
    "interval_2": lambda n: SMPLoRA(interval=2, strength=10.0),
}


class Clock(L.Callback):
    def __init__(self, warmup: int) -> None:
        self.warmup, self.seconds = warmup, []

    def _now(self, module) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.start = self._now(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > self.warmup:
            self.seconds.append(self._now(module) - self.start)


def sd15(folder: str) -> str:
    """Save a pipeline with SD v1.5's UNet at random weights around the tiny model's other parts."""
    from diffusers import UNet2DConditionModel

    from lightning_privacy.testing.tiny_diffusion import random_stable_diffusion

    random_stable_diffusion(folder, factor=8)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=32, attention_head_dim=8)
    unet.save_pretrained(f"{folder}/unet")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["tiny", "sd15"], default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    big = args.architecture == "sd15"
    pretrained = sd15(tempfile.mkdtemp()) if big else "tiny"
    inner = ToyImages(n=160, size=512, batch_size=args.batch_size) if big else Faces(batch_size=args.batch_size)
    split = MembershipSplit(inner)
    module = StableDiffusionLoRA(
        pretrained,
        rank=64 if big else 32,
        target_modules="kohya" if big else "attention",
        frozen_dtype="bfloat16" if big else "float32",
    )
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for round_ in range(args.rounds + 1):
        for name, build in SETTINGS.items():
            clock = Clock(warmup=2)
            trainer = L.Trainer(
                max_steps=args.steps,
                max_epochs=-1,
                accelerator="gpu" if args.device == "cuda" else "cpu",
                devices=1,
                precision="bf16-mixed" if big else "32-true",
                callbacks=[clock] + ([build(args.batch_size)] if build else []),
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, split)
            if round_:  # the first round fills caches
                seconds[name].append(mean(clock.seconds))  # the mean: with an interval, steps are of two kinds
    plain = seconds["plain"]
    print(
        json.dumps(
            {
                "architecture": args.architecture,
                "device": torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {args.threads} thread(s)",
                "batch_size": args.batch_size,
                "rounds": args.rounds,
                "settings": {
                    name: {
                        "seconds_per_step": round(median(values), 4),
                        "images_per_second": round(args.batch_size / median(values), 2),
                        "ratio_to_plain": round(median(v / p for v, p in zip(values, plain, strict=True)), 3),
                        "ratio_range": [
                            round(min(v / p for v, p in zip(values, plain, strict=True)), 3),
                            round(max(v / p for v, p in zip(values, plain, strict=True)), 3),
                        ],
                    }
                    for name, values in seconds.items()
                },
                "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
                if args.device == "cuda"
                else None,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
