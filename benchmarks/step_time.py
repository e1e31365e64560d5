"""Step time of SMP-LoRA against plain LoRA: same module, same member batches, median of paired rounds.

    python benchmarks/step_time.py                                      # tiny Stable Diffusion, 64 px, CPU
    python benchmarks/step_time.py --architecture sd15 --device cuda    # SD v1.5's UNet at random weights, 512 px, bf16
    python benchmarks/step_time.py --architecture sd15 --size 128 --settings plain paper_shared_forward    # the same, CPU

Each round trains a few steps under every setting in turn, so that whatever else the machine does hits all of them alike; the
ratio is taken within a round. One CPU thread is timed by the process's own clock, which stands while the processor serves
somebody else. Printed as one JSON object.
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

WARMUP = 2
SETTINGS = {
    "plain": None,
    "paper_shared_forward": lambda: SMPLoRA.paper(shared_forward=True),
    "paper": lambda: SMPLoRA.paper(),
    "recommended": lambda: SMPLoRA(),
    "fast": lambda: SMPLoRA.fast(),
}


class Clock(L.Callback):
    """Time every step after the first few."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def _now(self, module) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.start = self._now(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > WARMUP:
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


def build_module(big: bool, size: int, batch_size: int, folder: str) -> tuple[StableDiffusionLoRA, MembershipSplit]:
    """Return the module and its data; ``folder`` takes the large pipeline's files."""
    inner = ToyImages(n=160, size=size, batch_size=batch_size) if big else Faces(batch_size=batch_size)
    module = StableDiffusionLoRA(
        sd15(folder) if big else "tiny",
        rank=64 if big else 32,
        target_modules="kohya" if big else "attention",
        frozen_dtype="bfloat16" if big else "float32",
    )
    return module, MembershipSplit(inner)


def measure(module, split, name: str, args: argparse.Namespace) -> tuple[float, float]:
    """Train a few steps; return the mean seconds a step and the peak memory in GiB (nan on a CPU).

    The mean, not the median: with an interval, steps are of two kinds.
    """
    cuda, build = args.device == "cuda", SETTINGS[name]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    trainer = L.Trainer(
        max_steps=WARMUP + args.steps,
        max_epochs=-1,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if args.architecture == "sd15" else "32-true",
        callbacks=[clock] + ([build()] if build else []),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, split)
    return mean(clock.seconds), torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["tiny", "sd15"], default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=512, help="pixels a side; the tiny model's faces are always 64")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="with `plain`")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12, help="timed, a round; a multiple of every interval")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if "plain" not in args.settings:
        parser.error("--settings must name `plain`, which the others are compared with")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    seconds: dict[str, list[float]] = {name: [] for name in args.settings}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        module, split = build_module(args.architecture == "sd15", args.size, args.batch_size, folder)
        for round_ in range(args.rounds + 1):
            for name in args.settings:
                took, memory[name] = measure(module, split, name, args)
                if round_:  # the first round fills caches
                    seconds[name].append(took)
    settings = {}
    for name, values in seconds.items():
        ratios = [mine / plain for mine, plain in zip(values, seconds["plain"], strict=True)]
        settings[name] = {
            "seconds_per_step": round(median(values), 4),
            "images_per_second": round(args.batch_size / median(values), 2),
            "ratio_to_plain": round(median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        if args.device == "cuda":
            settings[name]["peak_memory_gib"] = round(memory[name], 2)
    measured = {
        "architecture": args.architecture,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {args.threads} thread(s)",
        "batch_size": args.batch_size,
        "pixels": args.size if args.architecture == "sd15" else 64,
        "rounds": args.rounds,
        "settings": settings,
    }
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
