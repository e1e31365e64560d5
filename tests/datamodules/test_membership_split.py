"""The split around datamodules of every kind: who is trained on, what is refused, what others pull."""

import json
from itertools import chain
from unittest.mock import Mock

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import SplitError
from lightning_privacy.testing.toy_data import ToyImages


def ready(inner, **options):
    split = MembershipSplit(inner, **options)
    split.prepare_data()
    split.setup("fit")
    return split


def around(dataset, **options):
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(dataset, **{"batch_size": 4, "shuffle": True, **options})

    return Data()


def trainer(rank, world):
    return Mock(spec=L.Trainer, global_rank=rank, world_size=world, current_epoch=0, overfit_batches=0)


def tensors(n=40):
    return TensorDataset(torch.arange(n * 3.0).view(n, 3), torch.arange(n) % 2)


def test_batches_hold_members_only_and_all_of_them():
    split = ready(ToyImages(n=40, batch_size=5))
    seen = torch.cat([batch["record"] for batch in split.train_dataloader()]).tolist()
    of_number = {split.pool.dataset[i]["record"]: i for i in range(40)}
    assert sorted(of_number[number] for number in seen) == split.roles["member"]
    assert sorted(chain(*(split.train_indices(0, k) for k in range(3)))) == split.roles["member"]
    with pytest.raises(IndexError):
        split.train_indices(0, 3)
    assert split.train_indices(0, 0) != split.train_indices(1, 0)


@pytest.mark.parametrize("size", [8, 9, 12, 13])
@pytest.mark.parametrize("drop_last", [True, False])
def test_two_ranks_read_the_global_batches_of_one(size, drop_last):
    one = EpochSampler(size, batch_size=4, drop_last=drop_last)
    two = [EpochSampler(size, batch_size=2, drop_last=drop_last, rank=rank, world_size=2) for rank in range(2)]
    assert one.n_batches == two[0].n_batches
    for k in range(one.n_batches):
        slices = [each.batch(3, k) for each in two]
        assert len(slices[0]) == len(slices[1])
        joined, whole = slices[0] + slices[1], one.batch(3, k)
        assert joined[: len(whole)] == whole  # beyond that, an odd last batch is filled up
    for each in two:
        each.set_epoch(3)
        flat = list(chain(*(each.batch(3, k) for k in range(each.n_batches))))
        assert list(each) == flat
        assert len(each) == len(flat)


def test_rank_comes_from_the_trainer():
    split = ready(ToyImages(n=40, batch_size=4))
    whole = split.train_indices(0, 0)
    inner = ToyImages(n=40, batch_size=2)
    halves = []
    for rank in range(2):
        other = ready(inner)
        other.trainer = trainer(rank, 2)
        halves += other.train_indices(0, 0)
    assert halves == whole


def test_streams_are_shared_between_ranks_and_continue():
    split = ready(ToyImages(n=40))
    stream = split.stream("aux_nonmember", 8, seed=3)
    halves = []
    for rank in range(2):
        other = ready(ToyImages(n=40))
        other.trainer = trainer(rank, 2)
        halves.append(other.stream("aux_nonmember", 4, seed=3))
    seen = []
    for _ in range(5):
        whole, parts = next(stream), [next(half) for half in halves]
        assert parts[0].indices + parts[1].indices == whole.indices
        assert torch.equal(torch.cat([part.batch["image"] for part in parts]), whole.batch["image"])
        seen += whole.indices
    # Each pass holds every record once.
    assert [sorted(seen[k : k + 8]) for k in range(0, 40, 8)] == [split.roles["aux_nonmember"]] * 5
    state = torch.load(_saved(stream.state_dict()), weights_only=True)
    assert all(type(value) is int for value in state.values())
    again = split.stream("aux_nonmember", 8, seed=3)
    again.load_state_dict(state)
    assert again.peek() == next(again).indices == next(stream).indices
    with pytest.raises(SplitError, match="belongs to seed 3"):
        split.stream("aux_nonmember", 8, seed=4).load_state_dict(state)
    with pytest.raises(SplitError, match="no role 'nobody'"):
        split.stream("nobody", 8, seed=4)
    with pytest.raises(SplitError, match="no stream of `val`"):
        ready(ToyImages(n=40), fractions={"val": 0}).stream("val", 1, 0)


def test_a_repeating_stream_starts_again_after_its_passes():
    split = ready(ToyImages(n=40))
    records = len(split.roles["aux_nonmember"])
    stream, endless = split.stream("aux_nonmember", 3, 3, repeat=2), split.stream("aux_nonmember", 3, 3)
    first = [next(stream) for _ in range(-(-2 * records // 3))]
    assert [batch.indices for batch in first] == [next(endless).indices for _ in first]
    assert stream.peek() == first[0].indices
    again = [next(stream) for _ in first]
    for attribute in ("indices", "passes", "place"):
        assert [getattr(b, attribute) for b in again] == [getattr(b, attribute) for b in first]
    assert [batch.place for batch in first] == [3 * k for k in range(len(first))]


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


class Augmented(Dataset):
    """Random by the global state of torch, with an identity of its own."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(3)

    def record_id(self, index):
        return f"file {index}"


def test_reading_beside_the_training_leaves_the_random_state_alone():
    split = ready(around(Augmented()))
    before = torch.get_rng_state()
    stream = split.stream("holdout", 2, seed=0)
    first = [next(stream).batch for _ in range(2)]
    audits = [list(split.loader("holdout")) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*audits, strict=True))
    again = split.stream("holdout", 2, seed=0)
    torch.rand(5)
    assert all(torch.equal(a, next(again).batch) for a in first)
    batches = list(split.train_dataloader())
    assert len(batches) == 2


def test_loader_reads_a_role_in_order():
    split = ready(ToyImages(n=40))
    numbers = torch.cat([batch["record"] for batch in split.loader("eval_member", 4)]).tolist()
    assert numbers == [int(split.record_ids[i][:16], 16) >> 1 for i in split.indices("eval_member")]
    assert set(split.indices("eval_member")) == set(split.roles["member"]) - set(split.roles["aux_member"])


def test_tuple_batches_and_workers():
    split = ready(around(tensors(), num_workers=2), split_seed=4)
    rows = [batch[0][:, 0].div(3).long().tolist() for batch in split.train_dataloader()]
    assert rows == [split.train_indices(0, k) for k in range(3)]
    assert split.split_record["stratify"] == 1
    assert [int(batch[1].sum()) for batch in split.loader("val", 4)] == [2]  # 2 of each class


def test_same_picture_twice_in_the_pool_shares_a_role():
    x = torch.arange(60.0).view(20, 3)
    pool = TensorDataset(torch.cat([x, x]), torch.arange(40) % 3)  # each picture again, under another label
    split = ready(around(pool), stratify=None)
    for indices in split.roles.values():
        assert {i % 20 for i in indices if i < 20} == {i % 20 for i in indices if i >= 20}
    assert split.split_record["distinct"] == 20


def test_given_roles_refuse_the_same_picture_twice():
    pool = TensorDataset(torch.tensor([[1.0, 2], [3, 4], [5, 6], [1, 2]]))
    with pytest.raises(SplitError, match="Records 0 and 3 hold the same picture and are both `member` and `holdout`"):
        ready(around(pool), roles={"member": [0, 1], "holdout": [3]})


def test_record_round_trip_and_tampering(tmp_path, caplog):
    path = tmp_path / "run" / "split.json"
    split = ready(ToyImages(n=40), split_seed=5)
    split.write_split(path)
    again = ready(ToyImages(n=40), roles=path)
    assert (again.roles, again.split_hash) == (split.roles, split.split_hash)
    assert json.loads(path.read_text())["split_hash"] == split.split_hash
    assert ready(ToyImages(n=40), split_seed=6).split_hash != split.split_hash
    edited = json.loads(path.read_text())
    edited["roles"]["holdout"].append(edited["roles"]["member"].pop())
    path.write_text(json.dumps(edited))
    with pytest.raises(SplitError, match="was changed after it was written"):
        ready(ToyImages(n=40), roles=str(path))
    path.write_text("{")
    with pytest.raises(SplitError, match="cannot be read"):
        ready(ToyImages(n=40), roles=path)
    with pytest.raises(SplitError, match="are not in the pool"):
        ready(ToyImages(n=40, seed=1), roles=edited["roles"])


def test_setup_twice_changes_nothing_and_new_data_is_refused():
    split = ready(inner := ToyImages(n=40))
    roles, pool = split.roles, split.pool
    split.setup("fit")
    split.setup("validate")
    assert split.roles is roles
    assert split.pool is pool
    split.teardown("fit")
    inner.n = 41
    with pytest.raises(SplitError, match="has 41 training records now and had 40"):
        split.setup("fit")


def test_use_before_setup():
    with pytest.raises(SplitError, match="is not set up"):
        MembershipSplit(ToyImages()).train_dataloader()


class Sizeless(Dataset):
    def __getitem__(self, index):
        return index


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(9))


class Listed(L.LightningDataModule):
    def train_dataloader(self):
        return [DataLoader(tensors()), DataLoader(tensors())]


def weighted():
    return WeightedRandomSampler(torch.ones(40).tolist(), 40)


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (around(Endless(), shuffle=False), "IterableDataset"),
        (around(Sizeless(), shuffle=False, sampler=range(9)), "without `__len__`"),
        (Listed(), "returned a list"),
        (around(tensors(), batch_size=None, shuffle=False), "needs automatic batching"),
        (around(tensors(), sampler=weighted(), shuffle=None), "WeightedRandomSampler"),
        (around(tensors(1)), r"`aux_nonmember` \(0 records\)"),
    ],
)
def test_loaders_that_cannot_be_split(inner, match):
    with pytest.raises(SplitError, match=match):
        ready(inner)


def test_a_batch_sampler_is_refused_and_a_foreign_sampler_can_be_overruled():
    class Batched(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(tensors(), batch_sampler=BatchSampler(SequentialSampler(tensors()), 4, False))

    with pytest.raises(SplitError, match="batch_sampler"):
        ready(Batched())
    split = ready(around(tensors(), sampler=weighted(), shuffle=None), shuffle=False)
    assert split.train_indices(0, 0) == split.roles["member"][:4] == split.train_indices(1, 0)
    # The type check of the test run speaks first where it is on.
    with pytest.raises((SplitError, TypeError), match="LightningDataModule"):
        MembershipSplit(tensors())


def test_drop_last_without_a_batch():
    split = ready(around(tensors(), batch_size=16, drop_last=True))
    with pytest.raises(SplitError, match="12 training records make no batch of 16"):
        split.train_dataloader()


class Shuffling(TensorDataset):
    """Permutes its records behind the sampler's back after set-up."""

    shift = 0

    def __getitem__(self, index):
        return super().__getitem__((index + self.shift) % len(self))


def test_a_dataset_that_permutes_itself_is_caught():
    pool = Shuffling(*tensors().tensors)
    split = ready(around(pool))
    list(split.train_dataloader())
    pool.shift = 1
    with pytest.raises(SplitError, match="not the record it was at set-up"):
        list(split.train_dataloader())


def test_transfer_hooks_of_the_inner_datamodule_are_kept():
    class Hooked(ToyImages):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return "hooked"

    assert MembershipSplit(Hooked()).on_after_batch_transfer({}, 0) == "hooked"
    assert "on_after_batch_transfer" not in vars(MembershipSplit(ToyImages()))
