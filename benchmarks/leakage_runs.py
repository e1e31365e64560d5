"""One cell of the leakage grid: a network on some pictures, a defence, a batch size; train, attack what is shared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch

from lightning_privacy.callbacks.audits.leakage import LeakageAudit
from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise
from lightning_privacy.callbacks.gradient_bottleneck.callback import GradientBottleneck
from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise
from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.key_lock.private_affine import PrivateAffine
from lightning_privacy.core.batches import labels_of
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.mnist5k import MNIST5k
from lightning_privacy.modules.classifier import ImageClassifier

STEPS = {"faces": 10, "digits": 16}
"""Optimizer steps an epoch."""
SHAPES = {"faces": (40, 3, 32), "digits": (10, 1, 28)}
"""Classes, channels and side."""
UNSEEN = ("attack_nonmember", "val", "holdout")
"""Roles whose pictures the model never saw, for its accuracy."""
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "lenet": {"network": "leakage_lenet", "network_args": {"norm": "batch", "half_width": 0.5}},
    "resnet": {"network": "cifar_resnet18", "network_args": {"width": 8}},
}
VARIANTS: Mapping[str, Callable[[], list[L.Callback]]] = {
    "undefended": list,
    "private_affine": lambda: [PrivateAffine()],
    "key_lock_paper": lambda: [KeyLock.paper()],
    "key_lock": lambda: [KeyLock(spread=0.5)],
    "key_lock_all": lambda: [KeyLock(layers="all", spread=0.5)],
    "pruning": lambda: [GradientPruning()],
    "noise": lambda: [GradientNoise(seed=0)],
    "clip_and_noise": lambda: [ClipAndNoise(unit="batch", seed=0)],
    "bottleneck": lambda: [GradientBottleneck(seed=0)],
    "key_lock_noise": lambda: [KeyLock(spread=0.5), GradientNoise(std=0.1, seed=0)],
    "key_lock_pruning": lambda: [KeyLock(spread=0.5), GradientPruning()],
    "key_lock_all_noise": lambda: [KeyLock(layers="all", spread=0.5), GradientNoise(seed=0)],
}
"""In the order in which they are made. The ordinary norm is `undefended`, and a control beside each lock."""
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "label_inference": {},
    "first_layer": {},
    "dlg": {"evaluations": 400, "restarts": 3},
    "inverting_gradients": {"steps": 600, "restarts": 3},
    "wrong_key": {},
    "joint": {},
    "joint_pooled": {},
    "key_regression": {},
    "known_lock": {},
    "grnn": {"steps": 600, "restarts": 3},
    "latent": {"evaluations": 200, "restarts": 3},
}
"""Attacks that extend a search take its arguments."""


def pictures(name: str, seed: int) -> MembershipSplit:
    """Return the ORL faces at 32 pixels, or MNIST's digits at 28, of which 500 are trained on."""
    if name == "faces":
        inner: L.LightningDataModule = Faces(people="1-40", size=32, batch_size=16, augment=True)
        fractions = {"member": 0.4, "aux_nonmember": 0.0, "attack_nonmember": 0.3, "val": 0.1, "holdout": 0.2}
    else:
        inner = MNIST5k(batch_size=32)
        fractions = {"member": 0.1, "aux_nonmember": 0.0, "attack_nonmember": 0.1, "val": 0.1, "holdout": 0.7}
    return MembershipSplit(inner, split_seed=seed, fractions=fractions)


class Everything(L.Callback):
    """Keep the results of the audit before the first step beside those of the last one."""

    def __init__(self, audit: LeakageAudit) -> None:
        self.audit, self.results = audit, []

    def on_train_start(self, trainer, module) -> None:
        self.results += self.audit.last_results

    def on_fit_end(self, trainer, module) -> None:
        self.results += self.audit.last_results if self.audit.at_end else []


def classifier(network: str, data: str, epochs: int) -> ImageClassifier:
    """Return an untrained classifier; at a constant rate sigmoids stay at chance for some seeds, with or without a lock."""
    classes, channels, side = SHAPES[data]
    rate, steps = 1e-2, epochs * STEPS[data] + 1
    return ImageClassifier(
        **NETWORKS[network],
        classes=classes,
        channels=channels,
        image_size=side,
        optimizer=partial(torch.optim.Adam, lr=rate),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=rate, total_steps=steps),
    )


@torch.no_grad()
def accuracy(module: ImageClassifier, data: MembershipSplit) -> float:
    """Return the share of unseen pictures that are classified rightly."""
    right = count = 0
    for role in UNSEEN:
        for batch in data.loader(role, 128):
            found = module.logits(batch).argmax(1) == labels_of(batch)
            right, count = right + int(found.sum()), count + len(found)
    return right / count


def run(network: str, data_name: str, variant: str, batch: int, seed: int, args: Any) -> dict[str, Any]:
    """Train one cell, attack its first and its last update, and return what was measured."""
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    data = pictures(data_name, seed)
    module = classifier(network, data_name, args.epochs)
    audit = LeakageAudit(
        attacks=list(args.attacks),
        attack_args={name: dict(ATTACKS[name]) for name in ATTACKS if ATTACKS[name]},
        victims=args.victims,
        batch_sizes=[batch],
        controls=["known_secrets", "ordinary_norm"],
        at_start="initial" in args.states,
        at_end="trained" in args.states,
        grid=8,
        seed=seed,
    )
    watch = Everything(audit)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*VARIANTS[variant](), audit, watch],
        default_root_dir=str(args.out / "pictures" / "-".join([network, data_name, variant, str(batch), str(seed)])),
    )
    began = time.perf_counter()
    trainer.fit(module, data)
    module.eval()
    return {
        "network": network,
        "data": data_name,
        "variant": variant,
        "batch": batch,
        "seed": seed,
        "epochs": args.epochs,
        "accuracy": accuracy(module, data),
        "seconds": round(time.perf_counter() - began),
        "results": [asdict(each) for each in watch.results],
    }
