"""One classifier of faces: one defence or control, one split seed; train, measure what it costs, attack what leaves it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch

from lightning_privacy.callbacks.adversarial_inversion.callback import AdversarialInversion
from lightning_privacy.callbacks.audits.inversion import InversionAudit
from lightning_privacy.callbacks.bido.callback import BiDO
from lightning_privacy.callbacks.inversion_controls.callback import (
    FrozenRandomConv,
    StandardizeOnly,
    TopKActivations,
    WidthMatchedBottleneck,
)
from lightning_privacy.callbacks.negative_label_smoothing.callback import NegativeLabelSmoothing
from lightning_privacy.callbacks.noise_tap.callback import NoiseTap
from lightning_privacy.callbacks.nopeek.callback import NoPeek
from lightning_privacy.callbacks.sparse_coding.callback import SparseCoding
from lightning_privacy.callbacks.variational_bottleneck.callback import VariationalBottleneck
from lightning_privacy.core.batches import labels_of
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.modules.classifier import ImageClassifier

SPLIT = "network.first_part"
UNSEEN = ("attack_nonmember", "val", "holdout")
"""Roles whose pictures the model never saw: 240 of 400, for its accuracy."""
ATTACKERS: Mapping[str, Any] = {
    "trained_decoder": {"max_steps": 1500},
    "optimisation_from_decoder": {"steps": 60, "most_steps": 960, "tuning": 6},
    "surrogate_from_decoder": {"steps": 60, "most_steps": 960, "tuning": 6},
}
"""The same for every variant: a start of few steps, doubled for as long as that finds more of the attacker's own pictures."""


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        kind: ``none``, ``sparse`` (what is judged), ``control`` or ``rival``.
        family: Rows of one family differ in one setting, so that they make a frontier.
        build: Makes the defence anew.
        split: The layer whose output leaves the client.
    """

    kind: str
    family: str
    build: Callable[[], list[L.Callback]] = field(default=list)
    split: str = SPLIT


def _sparse(**arguments: Any) -> Variant:
    learned = arguments.get("dictionary") == "hebbian"
    family = "learned" if learned else "standard" if arguments.get("layers") == 1 else "random"
    return Variant("sparse", f"sparse coding, {family} dictionary", lambda: [SparseCoding(**arguments)])


VARIANTS: dict[str, Variant] = {
    "undefended": Variant("none", "undefended"),
    "sparse_0.5": _sparse(lam=0.5),
    "noise_1": Variant("rival", "noise", lambda: [NoiseTap(SPLIT, 1.0)]),
    "standardised": Variant("control", "standardised", lambda: [StandardizeOnly()]),
    "frozen_random": Variant("control", "frozen random convolutions", lambda: [FrozenRandomConv()]),
    "top_10": Variant("control", "top-k", lambda: [TopKActivations(SPLIT, 0.1)]),
    "narrow_4": Variant("control", "bottleneck", lambda: [WidthMatchedBottleneck(SPLIT, 4)], f"{SPLIT}.narrow"),
    "sparse_1.5": _sparse(lam=1.5),
    "noise_2": Variant("rival", "noise", lambda: [NoiseTap(SPLIT, 2.0)]),
    "noise_4": Variant("rival", "noise", lambda: [NoiseTap(SPLIT, 4.0)]),
    "narrow_2": Variant("control", "bottleneck", lambda: [WidthMatchedBottleneck(SPLIT, 2)], f"{SPLIT}.narrow"),
    "top_3": Variant("control", "top-k", lambda: [TopKActivations(SPLIT, 0.03)]),
    "learned_1.5": _sparse(lam=1.5, dictionary="hebbian", warm_up_epochs=1),
    "nopeek": Variant("rival", "nopeek", lambda: [NoPeek(SPLIT)]),
    "bido": Variant("rival", "bido", lambda: [BiDO([SPLIT, "network.second_part"])]),
    "bottleneck_1e-4": Variant("rival", "variational bottleneck", lambda: [VariationalBottleneck(SPLIT, 1e-4)]),
    "adversarial": Variant("rival", "adversarial inversion", lambda: [AdversarialInversion(SPLIT)]),
    "negative_smoothing": Variant("rival", "negative label smoothing", lambda: [NegativeLabelSmoothing()]),
    "sparse_1": _sparse(lam=1.0),
    "standard_1.5": _sparse(lam=1.5, layers=1),
    "noise_0.5": Variant("rival", "noise", lambda: [NoiseTap(SPLIT, 0.5)]),
    "narrow_1": Variant("control", "bottleneck", lambda: [WidthMatchedBottleneck(SPLIT, 1)], f"{SPLIT}.narrow"),
    "top_1": Variant("control", "top-k", lambda: [TopKActivations(SPLIT, 0.01)]),
    "bottleneck_1e-5": Variant("rival", "variational bottleneck", lambda: [VariationalBottleneck(SPLIT, 1e-5)]),
    "bottleneck_1e-3": Variant("rival", "variational bottleneck", lambda: [VariationalBottleneck(SPLIT)]),
    "nopeek_0.1": Variant("rival", "nopeek", lambda: [NoPeek(SPLIT, 0.1)]),
    "nopeek_2": Variant("rival", "nopeek", lambda: [NoPeek(SPLIT, 2.0)]),
    "bido_half": Variant("rival", "bido", lambda: [BiDO([SPLIT, "network.second_part"], 0.025, 0.25)]),
    "bido_double": Variant("rival", "bido", lambda: [BiDO([SPLIT, "network.second_part"], 0.1, 1.0)]),
    "adversarial_0.3": Variant("rival", "adversarial inversion", lambda: [AdversarialInversion(SPLIT, 0.3)]),
    "adversarial_3": Variant("rival", "adversarial inversion", lambda: [AdversarialInversion(SPLIT, 3.0)]),
    "negative_0.02": Variant("rival", "negative label smoothing", lambda: [NegativeLabelSmoothing(-0.02)]),
    "negative_0.2": Variant("rival", "negative label smoothing", lambda: [NegativeLabelSmoothing(-0.2)]),
    "sparse_0.5_solved": _sparse(lam=0.5, iters=64),
    "learned_3": _sparse(lam=3.0, dictionary="hebbian", warm_up_epochs=1),
}
"""In the order in which they are made: what the question needs first."""


class EpochTime(L.Callback):
    """Keep the processor seconds that each epoch of training took: what else the machine does is not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, module) -> None:
        self._start = time.process_time()

    def on_train_epoch_end(self, trainer, module) -> None:
        self.seconds.append(time.process_time() - self._start)


def faces(seed: int) -> MembershipSplit:
    """ORL at 32 pixels: 160 faces are trained on, 120 are the attacker's, 80 nobody's."""
    return MembershipSplit(
        Faces(people="1-40", size=32, batch_size=16, augment=True),
        split_seed=seed,
        fractions={"member": 0.4, "aux_nonmember": 0.0, "attack_nonmember": 0.3, "val": 0.1, "holdout": 0.2},
    )


@torch.no_grad()
def accuracy(module: ImageClassifier, data: MembershipSplit, role: str) -> tuple[int, int]:
    """Return how many pictures of a role are classified rightly, and of how many."""
    right = count = 0
    for batch in data.loader(role, 64):
        found = module.logits(batch).argmax(1) == labels_of(batch)
        right, count = right + int(found.sum()), count + len(found)
    return right, count


def run(name: str, seed: int, epochs: int, victims: int, taps: list[str], folder: str) -> dict[str, Any]:
    """Train one variant on one split, attack it, and return what was measured."""
    variant = VARIANTS[name]
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    data = faces(seed)
    module = ImageClassifier(
        "split_cnn",
        classes=40,
        image_size=32,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-2),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3, total_steps=10 * epochs + 1),
    )
    watch = EpochTime()
    audit = InversionAudit(
        split=variant.split,
        taps=taps,
        victims=victims,
        ceiling=name == "undefended",  # it does not depend on the model
        attack_args={k: dict(v) for k, v in ATTACKERS.items()},
        seed=seed,
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*variant.build(), watch, audit],
        default_root_dir=folder,
    )
    began = time.perf_counter()
    trainer.fit(module, data)
    module.eval()
    return {
        "variant": name,
        "seed": seed,
        "epochs": epochs,
        "accuracy": {role: accuracy(module, data, role) for role in ("member", *UNSEEN)},
        "parameters": sum(p.numel() for p in module.parameters()),
        "epoch_seconds": sorted(watch.seconds)[len(watch.seconds) // 2],
        "seconds": round(time.perf_counter() - began),
        "loss": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "defence/"))},
        "results": [kept(each) for each in audit.last_results],
    }


def kept(result: Any) -> dict[str, Any]:
    """Return what the summary needs of a result."""
    metrics = {
        name: [metric.value, metric.low, metric.high]
        for name, metric in result.metrics.items()
        if math.isfinite(metric.value)
    }
    extra = {k: result.extra.get(k) for k in ("per_victim", "fit_mse", "fit_steps", "chosen", "floor_psnr")}
    return {
        "attack": result.attack,
        "strongest": result.strongest,
        "converged": result.converged,
        "metrics": metrics,
        "notes": list(result.notes),
        **extra,
    }
