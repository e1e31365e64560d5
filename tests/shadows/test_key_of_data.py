"""What a shadow model's key tells of the data: every label and every setting of their reading, not how often they were read."""

import threading

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.testing.toy_data import ToyImages, _Discs


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3 * 16, 4)


def build(seed):
    return Linear(), []


def make_split(data=None, **options):
    split = MembershipSplit(data or ToyImages(n=24, size=4), **options)
    split.prepare_data()
    split.setup("fit")
    return split


def key_of(split):
    return ShadowPool(build, split, 2, trainer={"accelerator": "cpu"}, folder="unused").path(0).name


class _Labelled(Dataset):
    """Records by their pictures alone, as ours are, without `metadata`."""

    def __init__(self, labels, chance=0.5, opened=False):
        self.images, self.labels = torch.arange(24.0 * 48).view(24, 3, 4, 4), labels
        self._chance, self.reads, self._cache = chance, 0, {}
        self._random = np.random.default_rng(0)
        self._lock = threading.Lock() if opened else None

    def __len__(self):
        return len(self.labels)

    def record_id(self, index):
        return f"{index:064x}"

    def __getitem__(self, index):
        self.reads += 1
        self._cache[index] = self._random.random()
        return self.images[index], self.labels[index]


class _Data(L.LightningDataModule):
    def __init__(self, labels, chance=0.5, opened=False, number_of_workers=0):
        super().__init__()
        self._dataset = _Labelled(labels, chance, opened)

    def train_dataloader(self):
        return DataLoader(self._dataset, batch_size=4, shuffle=True)


def test_a_label_of_any_record_is_part_of_the_key():
    labels = [index % 4 for index in range(24)]
    plain = make_split(_Data(labels), stratify=None)
    member = plain.indices("member")[-1]
    changed = [*labels[:member], (labels[member] + 1) % 4, *labels[member + 1 :]]
    other = make_split(_Data(changed), stratify=None)
    assert plain.split_hash == other.split_hash  # the same pictures have the same roles
    assert key_of(plain) == key_of(make_split(_Data(labels), stratify=None)) != key_of(other)


def test_a_label_that_a_dataset_tells_as_metadata_is_part_of_the_key():
    one, other = (make_split(stratify=None) for _ in range(2))
    before = key_of(other)
    other.pool.dataset.labels[other.indices("member")[-1]] += 1
    assert key_of(one) == before != key_of(other)


def test_a_private_setting_of_a_dataset_is_part_of_the_key_and_what_reading_moves_is_not():
    labels = [0] * 24
    one, read, other, opened = (
        make_split(_Data(labels, **options), stratify=None) for options in ({}, {}, {"chance": 0.4}, {"opened": True})
    )
    for index in range(7):  # by a target's training, which an audit of a finished run does not repeat
        read.pool.dataset[index]
    assert key_of(one) == key_of(read) == key_of(opened) != key_of(other)


class _Noisy(_Discs):
    """Draws from a generator of its own, which no random state that we set governs."""

    metadata = None
    generator = np.random.default_rng(0)

    def __getitem__(self, index):
        return {"image": self.images[index] + self.generator.random(), "label": self.labels[index]}


class Noisy(ToyImages):
    def setup(self, stage):
        self.dataset = _Noisy(self.n, self.size, self.seed)


def test_records_that_no_seed_repeats_are_told_by_identity_and_label():
    one, other = (make_split(Noisy(n=24, size=4)) for _ in range(2))
    assert key_of(one) == key_of(other)
    other.pool.dataset.labels[other.indices("member")[-1]] += 1
    assert key_of(one) != key_of(other)
