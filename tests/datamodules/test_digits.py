"""scikit-learn's digits, and the labelled pictures in memory that all such data sets are made of."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_privacy.datamodules.digits import Digits
from lightning_privacy.datamodules.labelled_pictures import LabelledPictures, shift_and_mirror
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.errors import InputError
from lightning_privacy.testing.fitting import compare, fit, state_of

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
datasets = pytest.importorskip("sklearn.datasets")


def digits(**options):
    data = Digits(**options)
    data.setup("fit")
    return data


def test_items_are_scikit_learns():
    data, found = digits(), datasets.load_digits()
    assert len(data.dataset) == 1797
    for index in (0, 100, 1796):
        item = data.dataset[index]
        assert set(item) == {"image", "label", "record"} and item["image"].dtype == torch.float32
        assert torch.equal(item["image"][0], torch.from_numpy(found.images[index]).float() / 16)
        assert item["label"] == found.target[index] and isinstance(item["label"], int)
        assert item["record"] == int(data.dataset.record_id(index)[:16], 16) >> 1


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    from lightning_privacy.datamodules import digits as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lightning-privacy\[demo\]"):
        digits()


def test_equal_pixels_are_one_record_and_share_a_role():
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    data = LabelledPictures(torch.cat([images, images]), torch.zeros(20, dtype=torch.long))
    assert [data.record_id(i) for i in range(10)] == [data.record_id(i) for i in range(10, 20)]
    split = MembershipSplit(L.LightningDataModule.from_datasets(data, batch_size=2, num_workers=0))
    split.setup("fit")
    members = set(split.roles["member"])
    assert members and all((i + 10) % 20 in members for i in members)


def test_shifting_moves_by_whole_pixels_and_mirroring_by_a_coin():
    image, seen = torch.rand(2, 6, 6), set()
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    places = {(y, x): padded[:, y : y + 6, x : x + 6] for y in range(3) for x in range(3)}
    mirrored = 0
    for seed in range(200):
        view = shift_and_mirror(image, 1, True, np.random.default_rng(seed))
        plain = shift_and_mirror(image, 1, False, np.random.default_rng(seed))
        (place,) = [key for key, value in places.items() if torch.equal(value, plain)]
        seen.add(place)
        mirrored += not torch.equal(view, plain)
        assert torch.equal(view, plain) or torch.equal(view, plain.flip(2))
    assert len(seen) == 9 and 70 < mirrored < 130


def test_augmentation_is_a_function_of_seed_epoch_and_picture():
    a, b, c = digits(augment=True).dataset, digits(augment=True).dataset, digits(augment=True, seed=1).dataset

    def views(data, epoch):
        return torch.stack([data[EpochIndex(i, epoch)]["image"] for i in range(20)])

    assert torch.equal(views(a, 0), views(b, 0))
    assert not torch.equal(views(a, 0), views(a, 1)) and not torch.equal(views(a, 0), views(c, 0))
    assert torch.equal(a[3]["image"], digits().dataset[3]["image"])  # raw without an epoch


def test_split_gives_every_class_its_share():
    split = MembershipSplit(Digits(batch_size=16), fractions={"member": 0.3})
    split.setup("fit")
    assert split.split_record["identity"] == "the dataset's own record_id"
    labels = torch.tensor(split.pool.dataset.labels)
    shares = torch.bincount(labels[split.roles["member"]]) / torch.bincount(labels)
    assert ((shares - 0.3).abs() < 0.01).all()
    batch = next(iter(split.train_dataloader()))
    assert batch["image"].shape == (16, 1, 8, 8) and batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == labels[split.train_indices(0, 0)].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_in_the_middle_of_an_epoch_is_exact(tmp_path, workers):
    from lightning_privacy.modules import ImageClassifier

    def run(folder, ckpt=None):
        data = Digits(batch_size=64, augment=True, num_workers=workers)
        split = MembershipSplit(data, fractions={"member": 180})  # 3 batches an epoch
        saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        module = ImageClassifier("small_cnn", network_args={"width": 4}, channels=1, image_size=8)
        options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True}
        return fit(folder, module, split, [saving], ckpt_path=ckpt, **options)

    whole = run(tmp_path / "whole")
    last = torch.load(tmp_path / "whole" / "step=6.ckpt", weights_only=True)
    for step in (2, 3, 4) if not workers else (4,):
        again = run(tmp_path / f"again{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert compare(again.weights, whole.weights) == [], step
        resumed = torch.load(tmp_path / f"again{step}" / "step=6.ckpt", weights_only=True)
        assert compare(state_of(resumed), state_of(last)) == [], step
