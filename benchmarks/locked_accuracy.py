"""What private normalisation costs a classifier, and what the rest of it is worth to whoever lacks the secrets.

    python benchmarks/locked_accuracy.py --seeds 0 1 2 --workers 2 --out benchmarks/results/locked_accuracy

Networks of one seed have the same public first weights, split and order of batches, and differ in the lock alone. Accuracy is
on pictures that no model saw: with the own secrets; with none, as a copy that left the client computes; with another key in
the own lock; with the secrets of another client, trained alike from another seed; with scale 1 and shift 0; and after someone
without the secrets has trained them anew on one labelled picture a class. Finished runs stay in OUT/runs.jsonl.
"""

import argparse
import copy
import pickle
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from leakage_runs import NETWORKS, SHAPES, UNSEEN, VARIANTS, classifier, pictures
from resumable import Job, append_line, read_lines, run_missing
from torch import Tensor, nn

from lightning_privacy.callbacks.key_lock.attack import leakage_view
from lightning_privacy.callbacks.key_lock.protect import load_shared_state_dict, rotate_key, shared_state_dict
from lightning_privacy.core.batches import images_of, labels_of
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.modules.classifier import ImageClassifier

NAMES = ("undefended", "private_affine", "key_lock", "key_lock_paper")
CASES = ("own secrets", "none", "wrong key", "other client's", "one and zero", "trained anew")
OTHER = 1000
"""What is added to a seed for the other client."""


def trained(
    network: str, data_name: str, variant: str, seed: int, epochs: int
) -> tuple[ImageClassifier, MembershipSplit]:
    """Train one client."""
    L.seed_everything(seed, verbose=False)
    data = pictures(data_name, seed)
    module = classifier(network, data_name, epochs)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=VARIANTS[variant](),
    )
    trainer.fit(module, data)
    return module.eval(), data


def unseen(data: MembershipSplit) -> tuple[Tensor, Tensor]:
    """Return the pictures that no model saw, and their classes."""
    batches = [batch for role in UNSEEN for batch in data.loader(role, 256)]
    return torch.cat([images_of(b) for b in batches]), torch.cat([labels_of(b) for b in batches])


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of pictures that are classified rightly."""
    found = torch.cat([network(part).argmax(1) for part in images.split(256)])
    return float((found == labels).double().mean())


def without_secrets(module: nn.Module, start: dict[str, Tensor]) -> nn.Module:
    """Return the network with an ordinary scale and shift in place of each private one."""
    view = leakage_view(module)
    state = dict(view.network.named_parameters())
    with torch.no_grad():
        for name in view.secrets:
            state[name].copy_(start.get(name, torch.full_like(state[name], float(name.endswith("weight")))))
    return view.network.eval()


def relearned(module: nn.Module, images: Tensor, labels: Tensor, steps: int = 300) -> nn.Module:
    """Return the network whose scale and shift someone has trained on a few pictures; nothing else moves."""
    network = without_secrets(module, {})
    mine = [p for name, p in network.named_parameters() if name in leakage_view(module).secrets]
    optimizer = torch.optim.Adam(mine, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward(inputs=mine)
        optimizer.step()
    return network


def run(network: str, data_name: str, variant: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train a client, and another where there are secrets, and evaluate what each holder has."""
    torch.set_num_threads(1)
    module, data = trained(network, data_name, variant, seed, epochs)
    images, labels = unseen(data)
    found = {"own secrets": accuracy(module.network, images, labels)}
    if variant != "undefended":
        # A pickle leaves the secrets behind; whoever reads it computes with random ones.
        found["none"] = accuracy(pickle.loads(pickle.dumps(module.network)).eval(), images, labels)
        if variant != "private_affine":
            wrong = copy.deepcopy(module.network)
            with warnings.catch_warnings(action="ignore"):
                rotate_key(wrong, refit=False)
            found["wrong key"] = accuracy(wrong, images, labels)
        other = trained(network, data_name, variant, seed + OTHER, epochs)[0].network
        load_shared_state_dict(other, shared_state_dict(module.network))
        found["other client's"] = accuracy(other.eval(), images, labels)
        found["one and zero"] = accuracy(without_secrets(module.network, {}), images, labels)
        firsts = torch.tensor([int((labels == c).nonzero()[0]) for c in labels.unique()])
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[firsts] = False
        learned = relearned(module.network, images[firsts], labels[firsts])
        found["trained anew"] = accuracy(learned.eval(), images[rest], labels[rest])
    cell = {"network": network, "data": data_name, "variant": variant, "seed": seed, "epochs": epochs}
    return {**cell, "accuracy": found}


def table(kept: Path) -> str:
    """Return mean and range over seeds, in per cent."""
    runs = read_lines(kept)
    lines = [f"{'network':8} {'data':7} {'variant':15} {'seeds':>5} " + " ".join(f"{c:>20}" for c in CASES)]
    for network, data, variant in dict.fromkeys((r["network"], r["data"], r["variant"]) for r in runs):
        mine = [r["accuracy"] for r in runs if (r["network"], r["data"], r["variant"]) == (network, data, variant)]
        cells = []
        for case in CASES:
            values = [100 * each[case] for each in mine if case in each]
            shown = f"{sum(values) / len(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else "-"
            cells.append(f"{shown:>20}")
        lines.append(f"{network:8} {data:7} {variant:15} {len(mine):5d} " + " ".join(cells))
    return "\n".join([*lines, "", "Accuracy on unseen pictures in per cent: mean over seeds (smallest to largest)."])


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--data", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--variants", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1, help="0: the one run that is named, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/locked-accuracy"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.jsonl"
    if args.workers == 0:
        found = run(args.networks[0], args.data[0], args.variants[0], args.seeds[0], args.epochs)
        return append_line(kept, found)
    done = {tuple(str(r[k]) for k in ("network", "data", "seed", "variant")) for r in read_lines(kept)}
    wanted = product(args.networks, args.data, args.seeds, args.variants)
    jobs = [job for job in (tuple(map(str, each)) for each in wanted) if job not in done]

    def arguments(job: Job) -> list[str]:
        network, data, seed, variant = job
        own = ["--networks", network, "--data", data, "--seeds", seed, "--variants", variant, "--workers", "0"]
        return [*own, "--epochs", str(args.epochs), "--out", str(args.out)]

    failed = run_missing(__file__, jobs, arguments, args.workers)
    text = table(kept)
    (args.out / "summary.txt").write_text(text + "\n")
    print(text)
    if failed:
        raise SystemExit(f"These failed: {failed}.")
    return None


if __name__ == "__main__":
    main()
