"""Canaries: fair coins that decide training alone, every role of the split untouched, everything written down."""

import json

import lightning.pytorch as L
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.datamodules.canaries import CanaryData
from lightning_privacy.datamodules.canary_records import checker, fair_coins
from lightning_privacy.datamodules.identity import content_digest
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError, SplitError
from lightning_privacy.testing.toy_data import ToyImages

ROOM = {"member": 0.3, "aux_nonmember": 0.1, "attack_nonmember": 0.1, "val": 0.1, "holdout": 0.1}


def planted(kind="mislabelled", count=12, seed=0, fractions=ROOM, inner=None):
    inner = inner or MembershipSplit(ToyImages(n=80, size=8), fractions=fractions)
    data = CanaryData(inner, count=count, kind=kind, seed=seed)
    data.prepare_data()
    data.setup("fit")
    return data


class Loaded(L.LightningDataModule):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader


def items(dataset):
    return [dataset[i] for i in range(len(dataset))]


def digests(dataset):
    return {content_digest(item) for item in items(dataset)}


def test_coins_are_fair_and_know_nothing_of_labels():
    coins = torch.cat([fair_coins(200, seed) for seed in range(100)])
    assert abs(float(coins.double().mean()) - 0.5) < 4 * 0.5 / len(coins) ** 0.5
    table, inner = torch.zeros(4, 2), planted().inner
    for seed in range(3):
        for canary in planted("crafted", 80, seed, inner=inner).planting.canaries:
            table[int(canary.label), int(canary.included)] += 1
    assert table.sum() == 240
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    # The same coins whatever is planted.
    assert torch.equal(planted("crafted").coins, planted("mislabelled").coins)


@pytest.mark.parametrize("kind", ["mislabelled", "crafted"])
def test_training_reads_every_member_and_the_canaries_that_are_in_once_an_epoch(kind):
    data = planted(kind)
    read = [int(r) for batch in data.train_dataloader() for r in batch["record"]]
    by_number = {int(item["record"]): "in" for item in items(data.subset("canary_in"))}
    by_number |= {int(item["record"]): "out" for item in items(data.subset("canary_out"))}
    members = [int(item["record"]) for item in items(data.subset("member"))]
    expected = sorted([*members, *(r for r, where in by_number.items() if where == "in")])
    # The last batch is filled up with the epoch's first records.
    assert sorted(set(read)) == expected
    assert not any(by_number.get(r) == "out" for r in read)
    assert len(data.indices("canary_in")) == int(data.coins.sum())


def test_the_order_of_training_can_be_asked_for():
    data = planted()
    for number, batch in enumerate(data.train_dataloader()):
        ids = [data.record_ids[i] for i in data.train_indices(0, number)]
        assert batch["record"].tolist() == [int(i[:16], 16) >> 1 for i in ids]


@pytest.mark.parametrize("kind", ["mislabelled", "crafted"])
def test_every_role_of_the_split_stays_as_it_was_and_holds_no_canary(kind):
    alone = MembershipSplit(ToyImages(n=80, size=8), fractions=ROOM)
    alone.setup("fit")
    data = planted(kind)
    assert data.roles == alone.roles
    assert data.split_hash == alone.split_hash
    canaries = digests(data.subset("canary"))
    for role in ("val", "holdout", "aux_nonmember", "attack_nonmember"):
        assert not canaries & digests(data.subset(role)), role
    numbers = {int(item["record"]) for item in items(data.subset("canary"))}
    assert not numbers & {int(r) for batch in data.val_dataloader() for r in batch["record"]}
    assert not numbers & {int(r) for batch in data.test_dataloader() for r in batch["record"]}


def test_a_mislabelled_canary_is_an_unused_picture_with_another_class_and_its_caption():
    data = planted()
    pool = data.pool.dataset
    for canary, item in zip(data.planting.canaries, items(data.subset("canary")), strict=True):
        true = pool[canary.source]
        assert torch.equal(item["image"], true["image"])
        assert item["label"] == canary.label != true["label"]
        assert item["caption"] != true["caption"]
        assert item["record"] == int(canary.id[:16], 16) >> 1
        assert canary.source_role == "unused"
    assert len({c.source for c in data.planting.canaries}) == 12


def test_members_are_copied_only_where_unused_records_do_not_suffice():
    everything_used = planted(fractions=None)
    assert {c.source_role for c in everything_used.planting.canaries} == {"aux_member"}
    assert "aux_member 12" in everything_used.summary()
    with pytest.raises(SplitError, match="there are 24"):
        planted(fractions=None, count=25)


def test_crafted_canaries_are_different_pictures_in_the_range_of_the_data():
    data = planted("crafted")
    pictures = torch.stack([item["image"] for item in items(data.subset("canary"))])
    assert len(pictures.flatten(1).unique(dim=0)) == 12
    whole = torch.stack([item["image"] for item in items(data.subset("member"))])
    assert pictures.min() >= whole.min() - 1e-6
    assert pictures.max() <= whole.max() + 1e-6
    assert torch.equal(checker((3, 8, 8), 0, 1, 5, 2), checker((3, 8, 8), 0, 1, 5, 2))


def test_the_seed_decides_and_the_record_is_written_beside_the_split(tmp_path):
    data, same, other = planted(), planted(), planted(seed=1)
    assert data.canary_hash == same.canary_hash != other.canary_hash
    data.write_split(tmp_path / "split.json")
    written = json.loads((tmp_path / "canaries.json").read_text())
    assert written["split_hash"] == data.canary_hash
    assert [c["in"] for c in written["canaries"]] == data.coins.tolist()
    assert [c["id"] for c in written["canaries"]] == data.record_ids[80:]
    assert json.loads((tmp_path / "split.json").read_text())["split_hash"] == data.split_hash


def test_a_checkpoint_of_other_canaries_is_refused():
    data, other = planted(), planted(seed=1)
    data.load_state_dict(planted().state_dict())
    with pytest.raises(SplitError, match="other coins decided"):
        other.load_state_dict(data.state_dict())


def test_pairs_of_picture_and_class_are_planted_too():
    generator = torch.Generator().manual_seed(0)
    pool = TensorDataset(torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3)
    loader = DataLoader(pool, batch_size=8)
    inner = MembershipSplit(Loaded(loader), fractions=ROOM)
    for kind in ("mislabelled", "crafted"):
        data = CanaryData(inner, count=6, kind=kind)
        data.setup("fit")
        for canary, (image, label) in zip(data.planting.canaries, data.subset("canary"), strict=True):
            assert image.shape == (1, 8, 8)
            assert label.dtype == torch.int64
            assert canary.source is None or int(label) != int(pool[canary.source][1])
        assert sum(len(y) for _, y in data.loader("canary")) == 6


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(SplitError, match="around a MembershipSplit"):
        CanaryData(ToyImages())
    with pytest.raises(InputError, match="kind"):
        CanaryData(MembershipSplit(ToyImages()), kind="poison")
    inner = MembershipSplit(
        L.LightningDataModule.from_datasets(TensorDataset(torch.rand(40, 3)), batch_size=8), shuffle=True
    )
    with pytest.raises(InputError, match="carry a label"):
        CanaryData(inner, count=4).setup("fit")
