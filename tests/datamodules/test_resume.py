"""The order of training records after a resume, against the uninterrupted run."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import SplitError
from lightning_privacy.testing.toy_data import ToyImages

pytestmark = [
    # Lightning advises more loader workers, and asks for logging more often than these few batches allow.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Two workers on a machine with fewer cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # Lightning's own call of a deprecated torch function.
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # The resumed run of a test writes elsewhere.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Crash(Exception):
    pass


class Recorder(L.LightningModule):
    """Notes what it saw, and what the split said it would see."""

    def __init__(self, crash_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.crash_at = [], crash_at

    def training_step(self, batch, batch_idx):
        split = self.trainer.datamodule
        if isinstance(split, MembershipSplit):
            told = [split.record_ids[i] for i in split.train_indices(self.current_epoch, batch_idx)]
            assert [int(each[:16], 16) >> 1 for each in told] == batch["record"].tolist()
        if self.global_step == self.crash_at:
            raise Crash
        self.seen.append(batch["record"].tolist())
        return self.layer(batch["record"].float()[:, None] * 0).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def make(workers=0, drop_last=False, wrap=True, **options):
    toy = ToyImages(n=40 if wrap else 12, size=4, batch_size=4, num_workers=workers, drop_last=drop_last)
    return MembershipSplit(toy, fractions={"member": 0.3}, **options) if wrap else toy


def fit(folder, data, module=None, ckpt=None, callbacks=(), **options):
    module = module or Recorder()
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(
                folder, "{step}", save_top_k=-1, **(options.pop("save", None) or {"every_n_train_steps": 1})
            ),
            *callbacks,
        ],
        **{"max_epochs": 3, "num_sanity_val_steps": 1, **options},
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module.seen


@pytest.mark.parametrize(
    ("data", "trainer"),
    [
        ({}, {}),
        ({"workers": 2}, {"limit_val_batches": 0, "max_epochs": 2}),
        ({"drop_last": True}, {"limit_train_batches": 2}),
        ({}, {"max_epochs": -1, "max_steps": 8}),
        ({}, {"val_check_interval": 1}),
        ({}, {"limit_val_batches": 0}),
        ({"wrap": False}, {}),
        ({}, {"reload_dataloaders_every_n_epochs": 1}),
    ],
    ids=["plain", "workers", "limited", "max_steps", "val_each_step", "no_val", "bare_toy", "reloaded"],
)
def test_resume_from_every_step_continues_the_sequence(tmp_path, data, trainer):
    whole = fit(tmp_path, make(**data), **trainer)
    steps = range(1, len(whole)) if not data.get("workers") else [2]
    assert len({tuple(batch) for batch in whole}) == len(whole)  # epochs differ in order
    for step in steps:
        again = fit(tmp_path / "again", make(**data), ckpt=tmp_path / f"step={step}.ckpt", **trainer)
        assert again == whole[step:], step


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 4},
        {"max_epochs": -1, "max_steps": 12},
        {"max_epochs": -1, "max_steps": 12, "limit_val_batches": 0},
    ],
    ids=["epochs", "steps", "steps_no_val"],
)
@pytest.mark.parametrize("late", [True, False], ids=["after_epoch", "after_validation"])
def test_resume_at_the_end_of_an_epoch(tmp_path, trainer, late):
    save = {"every_n_epochs": 1, "save_on_train_epoch_end": late}
    if not late and trainer.get("limit_val_batches") == 0:
        pytest.skip("there is no validation to save after")
    whole = fit(tmp_path, make(), save=save, **trainer)
    for step in (3, 6, 9):
        again = fit(tmp_path / "again", make(), ckpt=tmp_path / f"step={step}.ckpt", save=save, **trainer)
        assert again == whole[step:], step


def place_in(path):
    """The loader's state, read as plain values only."""
    (place,) = torch.load(path, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return place


class SaveAt(L.Callback):
    """Saves in a hook where Lightning's counters are in between."""

    def __init__(self, hook, path, epoch):
        self.path, self.epoch = path, epoch
        setattr(self, hook, self.save)

    def save(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end", "on_train_start"])
def test_place_is_right_in_every_hook(tmp_path, hook):
    fit(tmp_path, make(), callbacks=[SaveAt(hook, tmp_path / "x.ckpt", epoch := 0 if hook == "on_train_start" else 1)])
    place = place_in(tmp_path / "x.ckpt")
    assert (place["epoch"], place["seen"]) == (epoch + (hook == "on_train_epoch_end"), 0)


@pytest.mark.parametrize("trainer", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 12}], ids=["epochs", "steps"])
@pytest.mark.parametrize("first", [2, 3, 6])
def test_resuming_again_and_again(tmp_path, trainer, first):
    """Each run resumes from its predecessor's next checkpoint, over two epoch borders."""
    whole = fit(tmp_path / str(first), make(), **trainer)
    folder = tmp_path / str(first)
    for step in range(first, 12, 2):
        after = tmp_path / str(step + 2)
        assert fit(after, make(), ckpt=folder / f"step={step}.ckpt", **trainer) == whole[step:], step
        folder = after


class SaveDying(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("workers", "steps"), [(0, (1, 2, 4)), (2, (1,))])
def test_a_killed_step_is_done_again(tmp_path, workers, steps):
    short = {"max_epochs": 2, "limit_val_batches": 0}
    whole = fit(tmp_path / "whole", make(), **short)
    for step in steps:
        folder = tmp_path / f"crash{step}"
        with pytest.raises(Crash):
            fit(
                folder,
                make(workers),
                Recorder(crash_at=step),
                callbacks=[SaveDying(folder / "exception.ckpt")],
                **short,
            )
        # The step that died left no trace, neither in the checkpoint of the step before nor in one saved while dying.
        for name in (f"step={step}", "exception"):
            assert fit(tmp_path / "again", make(), ckpt=folder / f"{name}.ckpt", **short) == whole[step:]


def test_checkpoint_carries_plain_values_and_refuses_another_split(tmp_path):
    data = make()
    fit(tmp_path, data)
    assert torch.load(tmp_path / "step=2.ckpt", weights_only=True)["MembershipSplit"]["split_hash"] == data.split_hash
    assert place_in(tmp_path / "step=2.ckpt") == {"epoch": 0, "seen": 8, "global_batch": 4, "size": 12, "seed": 0}
    with pytest.raises(SplitError, match="trained on split"):
        fit(tmp_path / "again", make(split_seed=1), ckpt=tmp_path / "step=2.ckpt")
    other = make()
    other.inner.batch_size = 6
    with pytest.raises(SplitError, match="global_batch 4 in the checkpoint, 6 now"):
        fit(tmp_path / "again", other, ckpt=tmp_path / "step=2.ckpt")
    assert fit(tmp_path / "again", other, ckpt=tmp_path / "step=3.ckpt")  # between epochs any batch size will do


def test_validate_refuses_a_checkpoint_of_another_split(tmp_path):
    fit(tmp_path, make())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(SplitError, match="trained on split"):
        trainer.validate(
            Recorder(), datamodule=make(split_seed=1), ckpt_path=tmp_path / "step=1.ckpt", weights_only=True
        )


def test_a_second_fit_starts_anew_and_a_finished_one_can_go_on(tmp_path):
    data = make()
    whole = fit(tmp_path, data, max_epochs=3)
    assert fit(tmp_path / "again", data, ckpt=tmp_path / "step=2.ckpt") == whole[2:]
    assert fit(tmp_path / "again", data) == whole
    assert fit(tmp_path / "again", make(), max_epochs=3, ckpt=tmp_path / "step=9.ckpt") == []
    assert fit(tmp_path / "long", make(), max_epochs=4)[9:] == fit(
        tmp_path / "again", make(), max_epochs=4, ckpt=tmp_path / "step=9.ckpt"
    )


# Lightning says that it turns shuffling off.
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_still_reads_members_only(tmp_path):
    class Blind(Recorder):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch["record"].tolist())
            return self.layer(batch["record"].float()[:, None] * 0).mean()

    data = make()
    seen = fit(tmp_path, data, Blind(), overfit_batches=2, max_epochs=1)
    assert {number for batch in seen for number in batch} <= {
        int(data.record_ids[i][:16], 16) >> 1 for i in data.roles["member"]
    }
    with pytest.raises(SplitError, match="limit_train_batches instead"):
        data.train_indices(0, 0)
