"""The split under DDP: ranks share each global batch, resume together, and notice when they see different data."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import SplitError
from lightning_privacy.testing.toy_data import ToyImages

pytestmark = [
    pytest.mark.dist,
    # Lightning advises more loader workers, and asks for logging more often than these few batches allow.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Lightning's own call of a deprecated torch function.
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec.*"),
]


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        split = self.trainer.datamodule
        told = split.train_indices(self.current_epoch, batch_idx)
        assert [int(split.record_ids[i][:16], 16) >> 1 for i in told] == batch["record"].tolist()
        self.seen.append(told)
        return self.layer(batch["record"].float()[:, None] * 0).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, batch_size, ckpt=None, **options):
    data = MembershipSplit(ToyImages(n=40, size=4, batch_size=batch_size))
    module = Recorder()
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)],
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    stream = data.stream("holdout", batch_size, 0)
    return module.seen, [next(stream).indices for _ in range(3)], type(trainer.train_dataloader.sampler).__name__


def fit_on_rank(folder, ckpt=None):
    return fit(folder, 2, ckpt, strategy="ddp", devices=2)


def disagree():
    data = MembershipSplit(ToyImages(n=40, seed=torch.distributed.get_rank()))
    try:
        data.setup("fit")
    except SplitError as error:
        return str(error)
    return ""


def test_two_processes_are_one_on_the_same_global_batch(tmp_path, rank_pool):
    batches, streamed, _ = fit(tmp_path / "one", 4)
    (here, here_stream, sampler), (there, there_stream, _) = rank_pool.run(fit_on_rank, str(tmp_path / "two"))
    assert sampler == "EpochSampler"  # Lightning left it alone
    assert [a + b for a, b in zip(here, there, strict=True)] == batches
    assert [a + b for a, b in zip(here_stream, there_stream, strict=True)] == streamed
    ranks = rank_pool.run(fit_on_rank, str(tmp_path / "again"), str(tmp_path / "two" / "step=2.ckpt"))
    assert [ranks[0][0], ranks[1][0]] == [here[2:], there[2:]]
    # A checkpoint of one process goes on with two.
    ranks = rank_pool.run(fit_on_rank, str(tmp_path / "more"), str(tmp_path / "one" / "step=1.ckpt"))
    assert [a + b for a, b in zip(ranks[0][0], ranks[1][0], strict=True)] == batches[1:]


def test_ranks_with_different_data_are_stopped(rank_pool):
    assert all("The processes read different pools" in message for message in rank_pool.run(disagree))
