"""What private normalisation costs three clients of a federation, and what the common model is worth without their secrets.

    python benchmarks/federated_accuracy.py --seeds 0 1 2 --workers 2 --out benchmarks/results/federated_accuracy

Needs the extra `flower`. Flower's FedAvg in one process: each client trains on its own third of the training pictures, sends
what `client_app` lets out, and keeps its secrets. Runs of one seed have the same first weights, shares and orders, and differ
in the defence alone. Accuracy of the last round's common model is on pictures that nobody saw: with each client's secrets,
with those of one that has just joined, and for comparison of one model trained centrally on all shares together for as many
epochs. Finished runs stay in OUT/runs.jsonl.
"""

import argparse
import sys
import tempfile
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from leakage_runs import NETWORKS, SHAPES, UNSEEN, VARIANTS
from lightning.pytorch.utilities.seed import isolate_rng
from resumable import Job, append_line, read_lines, run_missing
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_privacy.core.batches import labels_of
from lightning_privacy.datamodules.client_part import part_of
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.mnist5k import MNIST5k
from lightning_privacy.modules.classifier import ImageClassifier

sys.path.append(str(Path(__file__).parents[1] / "tests/federated"))  # Flower's grid without processes

CLIENTS = 3
NAMES = ("undefended", "private_affine", "key_lock", "key_lock_paper")
CASES = ("central", "own secrets", "newcomer's")
MEMBERS = {"faces": 0.6, "digits": 0.3}
"""Shares of all pictures that are trained on: 240 of 400, 1500 of 5000."""
RATES = {"lenet": 1e-3, "resnet": 3e-3}


class Shares(L.LightningDataModule):
    """Training pictures of some of the clients, and the pictures that nobody saw.

    Args:
        split: The pictures in roles, set up.
        parts: Numbers of the clients.
        seed: Of the shares.
    """

    def __init__(self, split: MembershipSplit, parts: tuple[int, ...], seed: int) -> None:
        super().__init__()
        members = split.loader("member", 16).dataset
        rows = sorted(row for part in parts for row in part_of(len(members), part, CLIENTS, seed))
        self.mine, self.seed = Subset(members, rows), seed
        self.unseen = ConcatDataset([split.loader(role, 16).dataset for role in UNSEEN])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.mine, 16, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.unseen, 256)


@cache
def split_of(data: str, seed: int) -> MembershipSplit:
    """Return faces at 32 pixels, or MNIST's digits at 28."""
    inner: L.LightningDataModule = (
        Faces(people="1-40", size=32, batch_size=16) if data == "faces" else MNIST5k(batch_size=16)
    )
    rest = 1 - MEMBERS[data]
    fractions = {
        "member": MEMBERS[data],
        "aux_nonmember": 0.0,
        "attack_nonmember": 0.1,
        "val": 0.1,
        "holdout": rest - 0.2,
    }
    made = MembershipSplit(inner, split_seed=seed, fractions=fractions)
    made.prepare_data()
    made.setup("fit")
    return made


def classifier(network: str, data: str, seed: int) -> ImageClassifier:
    """Return an untrained classifier, the same for a seed; a schedule would start anew in every round."""
    classes, channels, side = SHAPES[data]
    with isolate_rng():
        torch.manual_seed(seed)
        made = ImageClassifier(
            **NETWORKS[network],
            classes=classes,
            channels=channels,
            image_size=side,
            optimizer=partial(torch.optim.Adam, lr=RATES[network]),
        )
        made.configure_model()
    return made


def central(network: str, data: str, variant: str, seed: int, epochs: int) -> float:
    """Train one model on all shares, and return its accuracy."""
    module, shares = classifier(network, data, seed), Shares(split_of(data, seed), tuple(range(CLIENTS)), seed)
    L.seed_everything(seed, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=VARIANTS[variant](),
    )
    trainer.fit(module, shares)
    module.eval()
    right = count = 0
    with torch.no_grad():
        for batch in shares.val_dataloader():
            right += int((module.logits(batch).argmax(1) == labels_of(batch)).sum())
            count += len(labels_of(batch))
    return right / count


def run(network: str, data: str, variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a federation, and evaluate the common model with and without secrets."""
    from in_process import OneProcess
    from safetensors.torch import load_file

    from lightning_privacy.federated.flower.client import client_app
    from lightning_privacy.federated.flower.server import ServerParts, run_server
    from lightning_privacy.federated.private_state import PrivateState
    from lightning_privacy.federated.rounds import ClientParts, evaluate_round

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        private = [PrivateState(folder / f"client-{n}").folder for n in range(CLIENTS)]

        def parts(number: int) -> ClientParts:
            module, shares = classifier(network, data, seed), Shares(split_of(data, seed), (number,), seed)
            trainer = {"accelerator": "cpu", "max_epochs": args.local_epochs}
            return ClientParts(module, shares, VARIANTS[variant](), trainer, "none", seed=1000 * seed + number)

        def build(number: int, _: Any) -> ClientParts:
            return parts(number)

        grid = OneProcess([client_app(partial(build, n), private[n]) for n in range(CLIENTS)])
        server = ServerParts(
            classifier(network, data, seed),
            clients=CLIENTS,
            rounds=args.rounds,
            defences=VARIANTS[variant](),
            folder=folder / "server",
        )
        run_server(server, grid)
        if grid.errors:
            raise grid.errors[0]
        received = load_file(folder / "server/global.safetensors")
        newcomer = PrivateState(folder / "newcomer").folder

        def accuracy(number: int, of: Path) -> float:
            return evaluate_round(parts(number), received, PrivateState(of), args.rounds).metrics["val/accuracy"]

        numbers = range(CLIENTS)
        found = {"own secrets": [accuracy(n, private[n]) for n in numbers]}
        if variant != "undefended":
            found["newcomer's"] = [accuracy(n, newcomer) for n in numbers]
    found["central"] = [central(network, data, variant, seed, args.rounds * args.local_epochs)]
    cell = {"network": network, "data": data, "variant": variant, "seed": seed, "rounds": args.rounds}
    return {**cell, "local_epochs": args.local_epochs, "accuracy": found}


def table(kept: Path) -> str:
    """Return mean and range over seeds and clients, in per cent."""
    runs = read_lines(kept)
    lines = [f"{'network':8} {'data':7} {'variant':15} {'seeds':>5} " + " ".join(f"{c:>20}" for c in CASES)]
    for network, data, variant in dict.fromkeys((r["network"], r["data"], r["variant"]) for r in runs):
        mine = [r["accuracy"] for r in runs if (r["network"], r["data"], r["variant"]) == (network, data, variant)]
        cells = []
        for case in CASES:
            values = [100 * v for each in mine for v in each.get(case, [])]
            shown = f"{sum(values) / len(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else "-"
            cells.append(f"{shown:>20}")
        lines.append(f"{network:8} {data:7} {variant:15} {len(mine):5d} " + " ".join(cells))
    return "\n".join(
        [*lines, "", "Accuracy on unseen pictures in per cent: mean over seeds and clients (smallest to largest)."]
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet"], choices=NETWORKS)
    parser.add_argument("--data", nargs="+", default=["digits"], choices=SHAPES)
    parser.add_argument("--variants", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="0: the one run that is named, in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/federated-accuracy"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.jsonl"
    if args.workers == 0:
        return append_line(kept, run(args.networks[0], args.data[0], args.variants[0], args.seeds[0], args))
    done = {tuple(str(r[k]) for k in ("network", "data", "seed", "variant")) for r in read_lines(kept)}
    wanted = product(args.networks, args.data, args.seeds, args.variants)
    jobs = [job for job in (tuple(map(str, each)) for each in wanted) if job not in done]

    def arguments(job: Job) -> list[str]:
        network, data, seed, variant = job
        own = ["--networks", network, "--data", data, "--seeds", seed, "--variants", variant, "--workers", "0"]
        same = ["--rounds", str(args.rounds), "--local-epochs", str(args.local_epochs), "--out", str(args.out)]
        return [*own, *same]

    failed = run_missing(__file__, jobs, arguments, args.workers)
    text = table(kept)
    (args.out / "summary.txt").write_text(text + "\n")
    print(text)
    if failed:
        raise SystemExit(f"These failed: {failed}.")
    return None


if __name__ == "__main__":
    main()
