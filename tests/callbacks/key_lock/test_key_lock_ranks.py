"""One client that trains on two ranks: both have the same key and lock, and agree with a single process."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.key_lock.keeping import private_values
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import split_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier


def train(folder, name, key, ranks=2, layer="batch", ckpt_path=None):
    """Train on one of the ranks; return what is shared and what is not."""
    module = TinyClassifier()
    if layer == "batch":
        module.network.conv1 = nn.Sequential(module.network.conv1, nn.BatchNorm2d(4))
    module.scores = nn.LayerNorm(4)
    saver = ModelCheckpoint(Path(folder, name), "{step}", save_top_k=-1, every_n_train_steps=1)
    how = {"strategy": "ddp", "devices": 2} if ranks == 2 else {}
    defence = KeyLock("all", key, key_length=16, fresh_key="each_epoch")
    fit(
        folder,
        module,
        split_images(8 // ranks),
        [defence, saver],
        max_epochs=2,
        enable_checkpointing=True,
        ckpt_path=ckpt_path,
        sync_batchnorm=False,
        **how,
    )
    secrets = {n: v.detach().clone() for n, v in private_values(module).items()}
    return {
        "weights": {n: v.clone() for n, v in module.state_dict().items()},
        "secrets": secrets,
        "state": defence.state_dict(),
    }


@pytest.mark.dist
def test_a_key_drawn_on_rank_0_is_both_ranks_in_every_epoch(tmp_path, rank_pool):
    here, there = rank_pool.run(train, str(tmp_path), "fresh", None)
    different = (
        {"secrets": here["secrets"], "state": here["state"]},
        {"secrets": there["secrets"], "state": there["state"]},
    )
    assert compare(*different) == []
    assert here["state"]["epoch"] == 1 and here["secrets"]["network.conv1.1/key"].abs().sum() > 0


@pytest.mark.dist
def test_two_ranks_resume_exactly_and_agree_with_one_process(tmp_path, rank_pool):
    key = f"vault:{tmp_path / 'keys.safetensors'}#key"
    here, there = rank_pool.run(train, str(tmp_path), "through", key, layer="none")
    assert compare(here, there) == []
    middle = tmp_path / "through" / "step=3.ckpt"
    again, _ = rank_pool.run(train, str(tmp_path), "resumed", key, layer="none", ckpt_path=middle)
    assert compare(again, here) == []
    alone = train(tmp_path, "alone", key, ranks=1, layer="none")
    assert compare(here, alone, tolerance=1e-5) == []
    assert not torch.equal(here["secrets"]["scores/scale_bias"], torch.zeros(4))
