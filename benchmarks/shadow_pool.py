"""Shadow models a minute: Lightning one after the other, a bare loop one after the other, and all at once.

    python benchmarks/shadow_pool.py                                             # digits, a small network, 32 models
    python benchmarks/shadow_pool.py --task resnet --shadows 4 --batch 32 --steps 3            # CIFAR's shape on a CPU
    python benchmarks/shadow_pool.py --task resnet --shadows 32 --device cuda --precision bf16-mixed

All ways train the same models (halves, first weights, order), so that their validation accuracies are compared model by
model, and as distributions by a two-sample Kolmogorov-Smirnov test. Before timing, two models are trained in each way, so
that nothing that happens once is timed. ResNet trains on random pictures: its accuracies say nothing. Printed as one JSON
object.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import lightning.pytorch as L
import torch
from scipy.stats import ks_2samp

from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.datamodules.digits import Digits
from lightning_privacy.datamodules.labelled_pictures import LabelledPictures
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.shadows.build import seeded, shadow_seed
from lightning_privacy.shadows.sequential import shadow_trainer, training_seed
from lightning_privacy.shadows.stacked_batches import StackedBatches, refill


def task(args) -> tuple[MembershipSplit, object, dict]:
    """Return the split, the build function and the trainer's arguments."""
    trainer = {"accelerator": args.device, "limit_val_batches": 0, "precision": args.precision}
    if args.task == "digits":
        inner, settings = Digits(batch_size=args.batch), {"network": "small_cnn", "channels": 1, "image_size": 8}
        settings["optimizer"] = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        trainer |= {"max_epochs": args.epochs}
    else:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (args.records, 3, 32, 32), generator=draw, dtype=torch.uint8)
        data = LabelledPictures(images, torch.arange(args.records) % 10)
        inner = L.LightningDataModule.from_datasets(train_dataset=data, batch_size=args.batch)
        settings = {"network": "cifar_resnet18", "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}
        trainer |= {"max_steps": args.steps, "max_epochs": -1}
    split = MembershipSplit(inner)
    split.prepare_data()
    split.setup("fit")
    return split, lambda seed: (ImageClassifier(**settings), []), trainer


def train_bare(pool: ShadowPool, args) -> list[dict]:
    """Train every model of a pool by a plain loop over batches in memory."""
    states = []
    for shadow in range(pool.count):
        seed = shadow_seed(pool.seed, shadow)
        with seeded(training_seed(seed)):
            module, _ = pool.build(seed)
            module.configure_model()
            module.to(args.device)
            optimizer = module.configure_optimizers()
            batches = StackedBatches([pool.data(shadow)], module.device, module)
            steps = 0
            while steps < (args.epochs * batches.n_batches if args.task == "digits" else args.steps):
                epoch, place = divmod(steps, batches.n_batches)
                [(_, form, tensors)] = batches.batch(epoch, place)
                batch = refill(form, iter([tensor[0] for tensor in tensors]))
                optimizer.zero_grad()
                with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
                    loss = torch.nn.functional.cross_entropy(module.logits(batch).float(), batch["label"])
                loss.backward()
                optimizer.step()
                steps += 1
        states.append({name: value.cpu() for name, value in module.state_dict().items()})
    return states


def accuracy(pool: ShadowPool, state: dict, batch: dict, device: str) -> float:
    module, _ = pool.build(0)
    module.configure_model()
    module.load_state_dict(state)
    module.eval().to(device)
    with torch.no_grad():
        scores = module.logits({"image": batch["image"].to(device)}).cpu()
    return float((scores.argmax(1) == batch["label"]).float().mean())


def run(args, folder: Path) -> dict:
    split, build, trainer = task(args)
    shadow_trainer(trainer, [], folder)
    ways = {"lightning": False, "bare_loop": None, "at_once": True}
    found, accuracies = {}, {}
    [batch] = split.loader("val", len(split.indices("val")))
    for count in (2, args.shadows):
        for way, vectorised in ways.items():
            pool = ShadowPool(
                build,
                split,
                count,
                trainer=trainer,
                folder=folder / f"{way}{count}",
                vectorised=bool(vectorised),
            )
            for shadow in range(count):
                pool.parts(shadow)  # keys cost the same in all ways
            start, busy = time.perf_counter(), time.process_time()
            states = train_bare(pool, args) if vectorised is None else pool.train()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            found[way] = {
                "seconds": round(seconds, 2),
                "cpu_seconds": round(time.process_time() - busy, 2),
                "models_per_minute": round(60 * count / seconds, 1),
            }
            if vectorised is not None:
                states = [pool.state(shadow) for shadow in range(count)]
            accuracies[way] = [accuracy(pool, state, batch, args.device) for state in states]
    for way, values in accuracies.items():
        found[way] |= {"accuracy_mean": round(mean(values), 4), "accuracy_sd": round(stdev(values), 4)}
    at_once = found["at_once"]["models_per_minute"]
    return {
        "shadows": args.shadows,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        **found,
        "at_once_over_lightning": round(at_once / found["lightning"]["models_per_minute"], 2),
        "at_once_over_bare_loop": round(at_once / found["bare_loop"]["models_per_minute"], 2),
        "largest_accuracy_difference": round(
            max(abs(a - b) for a, b in zip(accuracies["at_once"], accuracies["lightning"], strict=True)), 4
        ),
        "ks_p_at_once_and_lightning": round(ks_2samp(accuracies["at_once"], accuracies["lightning"]).pvalue, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["digits", "resnet"], default="digits")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--shadows", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--records", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0, help="0 keeps torch's own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({**vars(args), **run(args, Path(folder))}, indent=1))


if __name__ == "__main__":
    main()
