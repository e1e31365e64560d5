"""The pool: what is kept is reused where nothing changed, and trained anew where anything did."""

import json

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from safetensors import safe_open
from torch import nn

from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.shadows import sequential as sequential_file
from lightning_privacy.shadows.canonical import digest
from lightning_privacy.testing.toy_data import ToyImages

TRAINER = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0}


class Linear(L.LightningModule):
    def __init__(self, lr=0.05, seed=0):
        super().__init__()
        self.lr = lr
        torch.manual_seed(seed)
        self.net = nn.Linear(3 * 16, 4)

    def logits(self, batch):
        return self.net(batch["image"].flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.logits(batch), batch["label"]), batch_size=len(batch["label"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Mute(Linear):
    logits = None

    def training_step(self, batch, batch_idx):
        return self.net(batch["image"].flatten(1)).square().mean()


def build(seed):
    return Linear(seed=seed), []


def build_faster(seed):
    return Linear(lr=0.1, seed=seed), []


def make_split(**options):
    split = MembershipSplit(ToyImages(n=24, size=4), **options)
    split.prepare_data()
    split.setup("fit")
    return split


@pytest.fixture(scope="module")
def split():
    return make_split()


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_larger_pool_reuses_a_smaller_one_and_another_run_trains_nothing(split, tmp_path):
    assert ShadowPool(build, split, 4, trainer=TRAINER, folder=tmp_path).train() == [0, 1, 2, 3]
    four = _files(tmp_path)
    assert len(four) == 4
    assert ShadowPool(build, split, 8, trainer=TRAINER, folder=tmp_path).train() == [4, 5, 6, 7]
    assert four.items() <= _files(tmp_path).items()
    assert ShadowPool(build, split, 8, trainer=TRAINER, folder=tmp_path).train() == []


def test_training_is_a_function_of_the_seed_and_shares_together_make_the_whole(split, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ShadowPool(build, split, 4, trainer=TRAINER, folder=whole).train()
    torch.rand(7)  # the global random state is none of the shadows' business
    assert ShadowPool(build, split, 4, trainer=TRAINER, folder=parts).train(share=(1, 2)) == [1, 3]
    assert ShadowPool(build, split, 4, trainer=TRAINER, folder=parts).train(share=(0, 2)) == [0, 2]
    assert _files(whole) == _files(parts)
    state = torch.get_rng_state()
    ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path / "third", seed=1).train()
    assert torch.equal(state, torch.get_rng_state())
    assert not set(_files(tmp_path / "third")) & set(_files(whole))


def test_a_run_that_is_killed_half_way_goes_on_and_makes_the_same_files(split, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ShadowPool(build, split, 4, trainer=TRAINER, folder=whole).train()
    calls = []

    def fails_at_the_second(build, seed):
        calls.append(seed)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return sequential_build(build, seed)

    sequential_build = sequential_file.build_shadow
    monkeypatch.setattr(sequential_file, "build_shadow", fails_at_the_second)
    with pytest.raises(RuntimeError, match="killed"):
        ShadowPool(build, split, 4, trainer=TRAINER, folder=broken).train()
    assert len(_files(broken)) == 1
    monkeypatch.undo()
    assert ShadowPool(build, split, 4, trainer=TRAINER, folder=broken).train() == [1, 2, 3]
    assert _files(broken) == _files(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": {**TRAINER, "max_epochs": 2}},
        {"build": build_faster},
        {"seed": 1},
        {"batch_size": 5},
        {"signature": "network: another"},
        {"split": make_split(split_seed=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_configuration_reuses_nothing(split, tmp_path, change):
    given = {"build": build, "split": split, "count": 2, "trainer": TRAINER, "folder": tmp_path}
    one, other = ShadowPool(**given), ShadowPool(**{**given, **change})
    assert not {one.path(k) for k in range(2)} & {other.path(k) for k in range(2)}


def test_the_same_configuration_has_the_same_keys_in_another_object(split, tmp_path):
    one = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path)
    other = ShadowPool(build, make_split(), 4, trainer=dict(reversed(TRAINER.items())), folder=tmp_path)
    assert [one.path(k) for k in range(2)] == [other.path(k) for k in range(2)]


def test_files_that_are_half_written_foreign_or_changed_are_trained_anew(split, tmp_path):
    pool = ShadowPool(build, split, 4, trainer=TRAINER, folder=tmp_path)
    pool.train()
    good = _files(tmp_path)
    paths = [pool.path(k) for k in range(4)]
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    paths[1].write_bytes(paths[3].read_bytes())
    raw = bytearray(paths[2].read_bytes())
    raw[-1] ^= 1  # one bit of a weight
    paths[2].write_bytes(bytes(raw))
    again = ShadowPool(build, split, 4, trainer=TRAINER, folder=tmp_path)
    assert again.train() == [0, 1, 2]
    assert _files(tmp_path) == good


def test_a_file_says_in_clear_what_it_was_made_of(split, tmp_path):
    pool = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path)
    pool.train()
    with safe_open(pool.path(1), framework="pt") as file:
        metadata = json.loads(file.metadata()["lightning_privacy"])
    parts = metadata["parts"]
    assert digest(parts) == metadata["key"] == pool.path(1).stem
    assert parts["trainer"]["max_epochs"] == 1 and parts["structure"][0][2]["lr"] == 0.05
    inside = pool.records.inside(0, 1)
    assert parts["in"] == sorted(split.record_ids[i] for i, is_in in inside.items() if is_in)
    assert metadata["trained"] == "one by one"


def test_evidence_is_what_each_trained_module_says(split, tmp_path):
    pool = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path)
    evidence = pool.observe(queries=2, roles=("holdout", "val"))
    indices = split.indices("holdout") + split.indices("val")
    assert evidence.record_ids == tuple(split.record_ids[i] for i in indices)
    assert evidence.confidence.shape == (len(indices), 2, 2)
    module = Linear()
    module.load_state_dict(pool.state(1))
    items = [split.pool.dataset[i] for i in indices]
    images, labels = torch.stack([i["image"] for i in items]), torch.tensor([i["label"] for i in items])
    logits = torch.stack([module.logits({"image": each}) for each in (images, images.flip(3))], dim=1)
    expected = scaled_confidence(logits.detach(), labels)
    torch.testing.assert_close(evidence.confidence[:, 1], expected, rtol=0, atol=1e-5)
    held = len(split.indices("holdout"))
    assert evidence.inside[:held].sum(1).tolist() == [1] * held
    assert not evidence.inside[held:].any()


def test_what_was_observed_is_not_observed_again(split, tmp_path, monkeypatch):
    first = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).observe()
    monkeypatch.setattr("lightning_privacy.shadows.pool.observe_one", None)
    again = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).observe()
    assert torch.equal(first.confidence, again.confidence)
    with pytest.raises(TypeError):
        ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).observe(queries=2)


def test_early_stopping_sees_the_targets_validation_records_and_no_other_shadows_history(split, tmp_path):
    stopping = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    trainer = {"max_epochs": 50, "accelerator": "cpu", "callbacks": [stopping]}
    pool = ShadowPool(build, split, 2, trainer=trainer, folder=tmp_path)
    pool.train()
    assert stopping.wait_count == 0 and stopping.best_score.isinf()
    short = ShadowPool(build, split, 2, trainer={**TRAINER, "max_epochs": 2}, folder=tmp_path / "two")
    short.train()
    for k in range(2):  # no improvement is enough, so that the second epoch is the last
        assert torch.equal(pool.state(k)["net.weight"], short.state(k)["net.weight"])


def test_impossible_arguments_are_refused(split, tmp_path):
    with pytest.raises(InputError, match="even number"):
        ShadowPool(build, split, 3, trainer=TRAINER, folder=tmp_path)
    with pytest.raises(InputError, match="asks for devices=2"):
        ShadowPool(build, split, 2, trainer={"devices": 2}, folder=tmp_path)
    with pytest.raises(InputError, match="holds logger, strategy"):
        ShadowPool(build, split, 2, trainer={"strategy": "ddp", "logger": True}, folder=tmp_path)
    with pytest.raises(InputError, match="must return a LightningModule and a list"):
        ShadowPool(lambda seed: Linear(seed=seed), split, 2, trainer=TRAINER, folder=tmp_path).train()
    with pytest.raises(MissingProtocolError, match="Mute.logits"):
        ShadowPool(lambda seed: (Mute(seed=seed), []), split, 2, trainer=TRAINER, folder=tmp_path).observe()
    with pytest.raises(InputError, match="1 to 18 views"):
        ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).observe(queries=19)
