"""One locked classifier of faces: one variant, one split seed; train it, measure what it costs, use it without the key."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lock_variants import VARIANTS

from lightning_privacy.callbacks.audits.lock import LockAudit
from lightning_privacy.core.results import AttackResult
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.locked import LockedDataModule
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.modules.classifier import ImageClassifier

PEOPLE, SIZE = 40, 64
FRACTIONS = {"member": 0.5, "aux_nonmember": 0.0, "attack_nonmember": 0.2, "val": 0.1, "holdout": 0.2}
SHARES = [0.05, 0.4]
"""Of the 200 pictures that a model is trained on: the attacker has 10, or all of its 64, with labels."""
_TUNED: Mapping[str, Any] = {"steps": 120, "rates": [1e-3, 3e-3]}
ATTACKERS: dict[str, dict[str, Any]] = {
    "fine_tune": dict(_TUNED),
    "head_tune": {"steps": 120, "rates": [1e-2]},
    "pair_unlocker": {"steps": 100, "rates": [3e-3]},
    "label_unlocker": {"steps": 100, "rates": [3e-3]},
    "distillation": {"steps": 120},
}
"""The same for every variant, as strong as a few minutes a run allow."""
RATES = {"small_cnn": 1e-3, "block_mlp": 1e-3}


def faces(name: str, seed: int, private: Path) -> MembershipSplit:
    """ORL at 64 pixels as in the recipe: 200 faces are trained on, 80 the attacker's, 40 for choices, 80 scored.

    Pictures whose values are shuffled as a whole cannot be moved or mirrored after that, so that `block_mlp` has neither.
    """
    variant = VARIANTS[name]
    moves = variant.network == "small_cnn"
    inner = LockedDataModule(
        Faces(people=f"1-{PEOPLE}", size=SIZE, batch_size=16),
        variant.editor(private),
        cache=private / "edits",
        locked=variant.lock is not None,
        decoys=variant.decoys,
        shift=3 if moves else 0,
        mirror=moves,
    )
    return MembershipSplit(inner, split_seed=seed, fractions=FRACTIONS)


def private_folder(out: Path) -> Path:
    """Make the folder of keys and edits, which version control leaves alone wherever it lies."""
    folder = out / "private"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def run(name: str, seed: int, epochs: int, out: Path) -> dict[str, Any]:
    """Train one variant on one split, attack it, and return what was measured."""
    variant = VARIANTS[name]
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    data = faces(name, seed, private_folder(out))
    module = ImageClassifier(
        variant.network,
        classes=PEOPLE,
        image_size=SIZE,
        optimizer=partial(torch.optim.AdamW, lr=RATES[variant.network], weight_decay=1e-2),
    )
    audit = LockAudit(attack_args=ATTACKERS, shares=SHARES, grid=False, seed=seed)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*variant.defence(), audit],
        default_root_dir=out / "runs" / f"{name}-{seed}",
    )
    began = time.process_time()
    trainer.fit(module, data)
    return {
        "variant": name,
        "seed": seed,
        "epochs": epochs,
        "seconds": round(time.process_time() - began),
        "results": [kept(each) for each in audit.last_results],
    }


def kept(result: AttackResult) -> dict[str, Any]:
    """Return what the summary needs of a result: right answers, how many pictures, and what the attack took and chose."""
    (n,) = result.n.values()
    extra = ("own_accuracy", "choice_accuracy", "cost", "chosen", "chosen_attack")
    return {
        "attack": result.attack,
        "family": result.family,
        "accuracy": result.metrics["accuracy"].value,
        "n": n,
        "converged": result.converged,
        **{k: result.extra[k] for k in extra if k in result.extra},
    }
