"""Compare membership attacks with and without shadow models on a small classifier, over split seeds.

    python benchmarks/shadow_attacks.py --data digits --shadows 32 --seeds 0 1 2

Two published orders are checked: online LiRA finds more members at a low false-positive rate than one global threshold
(arXiv 2112.03570), and RMIA with two reference models beats offline LiRA with two (arXiv 2312.03262). Prints every
attack, and the paired difference of each pair over seeds, then records. An order that does not hold is printed as such.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightning_privacy.attacks.membership.confidence import ScaledConfidence
from lightning_privacy.attacks.membership.lira import LiraOffline, LiraOfflineFixed, LiraOnline, LiraOnlineFixed
from lightning_privacy.attacks.membership.rmia import RmiaOffline, RmiaOnline
from lightning_privacy.callbacks.audits.membership_audit import audit_membership
from lightning_privacy.datamodules import Digits, MembershipSplit, MNIST5k
from lightning_privacy.metrics.membership import paired_difference, pool_over_seeds
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.testing.fitting import fit

DATA: dict[str, tuple[type, dict[str, Any]]] = {
    "digits": (Digits, {"channels": 1, "image_size": 8}),
    "mnist5k": (MNIST5k, {"channels": 1, "image_size": 28}),
}
FRACTIONS = {
    "member": 0.42,
    "aux_member": 0.1,
    "aux_nonmember": 0.0,
    "attack_nonmember": 0.08,
    "val": 0.08,
    "holdout": 0.42,
}
ORDERS = (
    ("lira_online", "scaled_confidence"),
    ("lira_online_fixed", "scaled_confidence"),
    ("rmia_offline_2", "lira_offline_2"),
    ("rmia_offline_2", "lira_offline_fixed_2"),
)


def attacks() -> list[Any]:
    """Return the attacks; those with two references are named so."""
    two = [RmiaOffline(references=2), LiraOffline(shadows=4), LiraOfflineFixed(shadows=4)]  # four: two IN, two OUT
    for attack in two:
        attack.name = f"{attack.name}_2"
    return [
        ScaledConfidence(),
        LiraOnline(),
        LiraOnlineFixed(),
        LiraOffline(),
        LiraOfflineFixed(),
        RmiaOnline(),
        RmiaOffline(),
        *two,
    ]


def build(data: str, network: str) -> Any:
    """Return the function that makes an untrained classifier from a seed."""

    def classifier(seed: int) -> tuple[ImageClassifier, list[Any]]:
        optimizer = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0)  # noqa: E731
        return ImageClassifier(network, classes=10, optimizer=optimizer, **DATA[data][1]), []

    return classifier


def one_seed(data: str, network: str, seed: int, shadows: int, epochs: int, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Train target and shadows on one split; return each attack's scores of members and non-members."""
    split = MembershipSplit(DATA[data][0](batch_size=32), split_seed=seed, fractions=FRACTIONS)
    split.prepare_data()
    split.setup("fit")
    make = build(data, network)
    torch.manual_seed(seed)
    target = fit(folder, make(seed)[0], split, max_epochs=epochs, seed=seed).module
    trainer = {"max_epochs": epochs, "accelerator": "cpu"}
    pool = ShadowPool(make, split, shadows, trainer=trainer, folder=folder / f"shadows-{seed}", seed=seed)
    pool.train()
    found = audit_membership(target, split, attacks(), shadows=pool.observe(), bootstrap=0, seed=seed)
    return {r.attack: tuple(torch.tensor(r.extra[f"{side}_scores"]) for side in ("member", "nonmember")) for r in found}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--network", default="small_cnn")
    parser.add_argument("--shadows", type=int, default=32)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--fpr", type=float, default=0.02, help="false-positive rate at which members are counted")
    parser.add_argument("--folder", type=Path, help="where shadow models are kept for the next call")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        runs = [one_seed(args.data, args.network, s, args.shadows, args.epochs, folder) for s in args.seeds]
    statistics = ("auroc", f"tpr_at_fpr_{args.fpr:g}")
    report: dict[str, Any] = {"attacks": {}, "differences": {}}
    for name in runs[0]:
        report["attacks"][name] = {s: _plain(pool_over_seeds([r[name] for r in runs], s)) for s in statistics}
    for better, worse in ORDERS:
        report["differences"][f"{better} - {worse}"] = {
            s: _plain(paired_difference([r[better] for r in runs], [r[worse] for r in runs], s)) for s in statistics
        }
    print(json.dumps(report, indent=1))
    return report


def _plain(metric: Any) -> dict[str, Any]:
    ends = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {**{k: round(v, 4) for k, v in ends.items()}, "valid": metric.valid}


if __name__ == "__main__":
    main()
