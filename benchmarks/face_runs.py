"""One LoRA fine-tune on the private faces: one variant, one split seed; train, watch `val`, attack on demand."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch

from lightning_privacy.callbacks.audits.membership_audit import AuditedModel, audit_membership
from lightning_privacy.callbacks.smp_lora.attack import ProxyAwareAttack
from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA
from lightning_privacy.core.results import AttackResult
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA
from lightning_privacy.modules.stable_diffusion.draws import stratified_draw

ATTACKS = ("averaged_loss", "calibrated_loss", "h_prime", "trained_calibrated")


@dataclass(frozen=True)
class Variant:
    """What distinguishes one column of the table.

    Args:
        defence: Arguments of `SMPLoRA`; None for an undefended run.
        members_and_aux: Train on the defence's auxiliary non-members as well.
        aux_alone: Train on them and on no member; the scored "members" are then half of the auxiliaries.
        augment: Mirror and crop what is trained on at random.
        constant_lr: Keep the learning rate instead of letting it fall to zero by a cosine.
        lora: Further arguments of `StableDiffusionLoRA`.
    """

    defence: Mapping[str, Any] | None = None
    members_and_aux: bool = False
    aux_alone: bool = False
    augment: bool = False
    constant_lr: bool = False
    lora: Mapping[str, Any] = field(default_factory=dict)


class Watch(L.Callback):
    """Keep val loss and adapter weights every few epochs, and the time of each step."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.val: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.trace: dict[int, dict[str, float]] = {}
        self.step_seconds: list[float] = []

    def on_train_start(self, trainer, module) -> None:
        self.weights[0] = adapter(module)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.step_seconds.append(time.perf_counter() - self._start)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        self.val[epoch] = trainer.callback_metrics["val/loss"].item()
        self.weights[epoch] = adapter(module)
        self.trace[epoch] = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("defence/")}


def adapter(module: StableDiffusionLoRA) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.named_parameters() if "lora_" in k}


@torch.no_grad()
def load(module: StableDiffusionLoRA, weights: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


@dataclass
class FaceRun:
    """A finished run; `attack` audits any of its kept epochs."""

    module: StableDiffusionLoRA
    split: MembershipSplit
    watch: Watch
    seed: int
    cache: dict[str, Any] = field(default_factory=dict)

    def best_epoch(self) -> int:
        return min(self.watch.val, key=self.watch.val.__getitem__)

    def first_epoch_at(self, loss: float) -> int:
        """Return the first kept epoch whose `val` loss is no higher; the best epoch if none is."""
        return next((e for e, v in sorted(self.watch.val.items()) if v <= loss), self.best_epoch())

    def attack(self, epoch: int, draws: int = 2, of_auxiliaries: bool = False) -> list[AttackResult]:
        """Attack a kept epoch, for its members or, in their place, for the defence's auxiliary non-members."""
        load(self.module, self.watch.weights[epoch])
        return audit_membership(
            self.module,
            make_split(Variant(aux_alone=True), self.seed) if of_auxiliaries else self.split,
            [*ATTACKS, ProxyAwareAttack()],
            draws=draws,
            seed=self.seed,
            bootstrap=200,
            batch_size=64,
            cache={} if of_auxiliaries else self.cache,
            model=AuditedModel(step=epoch, epoch=epoch),
        )

    @torch.no_grad()
    def loss(self, role: str, epoch: int, draws: int = 8) -> float:
        """Return the mean raw error of a role on fixed stratified draws; epoch 0 is the untuned model."""
        load(self.module, self.watch.weights[epoch])
        module = self.module.eval()
        total, count = 0.0, 0
        for batch in self.split.loader(role, 64):
            names, shape = batch["record"].tolist(), module.encoder.latent_shape(batch["image"])
            for i in range(draws):
                draw = stratified_draw(names, i, draws, shape, 1000)
                total += module.per_sample_error(batch, draw).flatten(1).mean(1).sum().item()
                count += len(names)
        return total / count


def make_split(variant: Variant, seed: int) -> MembershipSplit:
    split = ready(MembershipSplit(Faces(people="21-40", augment=variant.augment), split_seed=seed))
    if not (variant.members_and_aux or variant.aux_alone):
        return split
    roles = {k: list(v) for k, v in split.roles.items()}
    extra = roles.pop("aux_nonmember")
    if variant.aux_alone:
        roles["member"], roles["aux_member"] = extra, extra[::2]
    else:  # as auxiliary members, so that the records that are scored stay those of the other variants
        roles["member"], roles["aux_member"] = sorted(roles["member"] + extra), sorted(roles["aux_member"] + extra)
    return ready(MembershipSplit(Faces(people="21-40", augment=variant.augment), split_seed=seed, roles=roles))


def ready(split: MembershipSplit) -> MembershipSplit:
    split.prepare_data()
    split.setup("fit")
    return split


def train(
    variant: Variant, seed: int, epochs: int, pretrained: str = "tiny", every: int = 5, lr: float = 2e-3
) -> FaceRun:
    L.seed_everything(seed, verbose=False)
    split = make_split(variant, seed)

    def falling(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        steps = epochs * len(split.train_dataloader())
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    module = StableDiffusionLoRA(
        pretrained=pretrained,
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=1e-2),
        lr_scheduler=None if variant.constant_lr else falling,
        seed=seed,
        **variant.lora,
    )
    watch = Watch(every)
    callbacks: list[L.Callback] = [watch]
    if variant.defence is not None:
        callbacks.append(SMPLoRA(**variant.defence, seed=seed))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, split)
    return FaceRun(module, split, watch, seed)
