"""Shadow models are trained as long as the target: as many epochs, or as many steps where its last epoch was broken off."""

import os
import time

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_privacy.callbacks.audits.shadow_training import shadow_pool, trainer_arguments
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.shadows.sequential import shadow_trainer
from lightning_privacy.testing.toy_data import ToyImages


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.batches = nn.Linear(48, 4), 0

    def training_step(self, batch, batch_idx):
        self.batches += 1
        return F.cross_entropy(self.net(batch["image"].flatten(1)), batch["label"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stops(Callback):
    """As `max_time` does, whenever that comes."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 4


def make_split():
    split = MembershipSplit(ToyImages(n=40, size=4, batch_size=4))  # 12 members: 3 batches an epoch
    split.prepare_data()
    split.setup("fit")
    return split


def fit(folder, module=None, callbacks=None, **options):
    fixed = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        **fixed,
        limit_val_batches=0,
        default_root_dir=str(folder),
        enable_checkpointing=False,
        callbacks=callbacks,
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "validation_step", lambda *_: None, raising=False)
        trainer.fit(module or Linear(), datamodule=make_split())
    return trainer


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_epochs": 2}, {"max_epochs": 2}),
        ({"max_epochs": 9, "max_steps": 6}, {"max_epochs": 2}),
        ({"max_epochs": 9, "max_steps": 5}, {"max_epochs": -1, "max_steps": 5}),
        ({"max_epochs": -1, "max_steps": 2}, {"max_epochs": -1, "max_steps": 2}),
        ({"max_epochs": 9, "callbacks": [Stops()]}, {"max_epochs": -1, "max_steps": 4}),
        ({"max_epochs": 2, "limit_train_batches": 2}, {"max_epochs": 2, "limit_train_batches": 2}),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, {"max_epochs": 2, "accumulate_grad_batches": 2}),
    ],
    ids=str,
)
def test_a_shadow_takes_the_steps_of_the_target(tmp_path, options, length):
    trainer = fit(tmp_path, **options)
    given = trainer_arguments(trainer, trainer.current_epoch)
    assert {"limit_train_batches": 1.0, **length}.items() <= given.items()
    assert ("max_steps" in given) == ("max_steps" in length)
    module = Linear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linear, "validation_step", lambda *_: None, raising=False)
        shadow_trainer({**given, "limit_val_batches": 0}, [], tmp_path).fit(module, datamodule=make_split())
    assert module.batches == trainer.fit_loop.epoch_loop.batch_progress.total.completed


def _restored(saved):
    """As the verb audit restores progress: from the loops, from the step alone, or not at all."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=9, max_steps=5)
    if saved == "loops":
        trainer.fit_loop.epoch_loop.batch_progress.total.completed = 5
    if saved != "nothing":
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 5
    return trainer_arguments(trainer, 2)


def test_an_audit_of_a_checkpoint_takes_its_steps_and_of_bare_weights_the_epochs():
    for saved in ("loops", "step"):
        assert {"max_epochs": -1, "max_steps": 5}.items() <= _restored(saved).items()
    assert _restored("nothing")["max_epochs"] == 2 and "max_steps" not in _restored("nothing")


def test_a_pool_that_opens_removes_what_was_abandoned(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    left = tmp_path / f".{'ab' * 32}.safetensors.{'0f' * 16}"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    shadow_pool(lambda seed: (Linear(), []), trainer, make_split(), 2, epochs=1, folder=tmp_path)
    assert not left.exists()
