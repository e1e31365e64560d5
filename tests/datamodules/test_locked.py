"""Edits beside raw pictures: made once, kept whole, one geometry, and identity that stays the raw record's."""

import pickle
import stat
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_privacy.callbacks.model_lock.callback import ModelLock
from lightning_privacy.datamodules.edit_pass import edit_all
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.locked import LockedDataModule, find_locked
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.editors import LockSecret, NegativePositiveEditor, PixelShuffleEditor
from lightning_privacy.editors.stored import EditStore, picture_key
from lightning_privacy.errors import InputError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.toy_data import ToyImages

SECRET = LockSecret(seed=bytes(range(32)))


class Counting(PixelShuffleEditor):
    """Counts the pictures that it edits, its decoys' too."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self._shared["edited"] = 0

    def apply(self, images, secret):
        self._shared["edited"] += len(images)
        return super().apply(images, secret)


def editor(cls=PixelShuffleEditor, **settings):
    return cls.with_secret(SECRET, **settings)


def locked(tmp_path, n=8, **settings):
    settings = {"editor": editor(Counting), "cache": tmp_path / "edits", **settings}
    data = LockedDataModule(ToyImages(n=n, size=8), **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def dataset_of(data):
    return data.train_dataloader().dataset


def test_batches_hold_both_and_everything_is_edited_once(tmp_path):
    data = locked(tmp_path)
    batch = next(iter(data.train_dataloader()))
    assert torch.allclose(editor().edit(batch["raw"]), batch["image"], atol=1e-6)
    assert sorted(batch) == ["caption", "image", "label", "raw", "record"]
    for _ in range(2):
        dataset_of(data)
    next(iter(data.val_dataloader()))  # the same pictures
    assert data.editor._shared["edited"] == 8
    again = locked(tmp_path)
    dataset_of(again)
    assert again.editor._shared["edited"] == 0
    folder = next((tmp_path / "edits").iterdir())
    assert len(list(folder.rglob("*.safetensors"))) == 8 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    # another key keeps its edits apart
    other = locked(tmp_path, editor=editor(Counting).like(LockSecret(seed=bytes(32))))
    dataset_of(other)
    assert other.editor._shared["edited"] == 8


def test_edited_pictures_without_a_lock_are_no_silent_training(tmp_path):
    trainer = partial(fit, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match="no `model_lock` is among the callbacks"):
        trainer(tmp_path, TinyClassifier(), locked(tmp_path))
    # with the lock, or on raw pictures, nothing is said: warnings are errors here
    trainer(tmp_path, TinyClassifier(), locked(tmp_path), [ModelLock.paper()])
    trainer(tmp_path, TinyClassifier(), locked(tmp_path, locked=False))


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    class Killed(Counting):
        def apply(self, images, secret):
            if self._shared["edited"] >= 4:
                raise KeyboardInterrupt
            return super().apply(images, secret)

    with pytest.raises(KeyboardInterrupt):
        dataset_of(locked(tmp_path, editor=Killed.with_secret(SECRET), batch_size=2))
    going_on = locked(tmp_path, batch_size=2)
    dataset_of(going_on)
    assert going_on.editor._shared["edited"] == 4


@pytest.mark.parametrize("how", ["cut", "other shape", "no safetensors"])
def test_a_damaged_edit_is_made_anew_or_reported_by_its_path(tmp_path, how):
    dataset_of(locked(tmp_path))
    path = sorted((tmp_path / "edits").rglob("*.safetensors"))[3]
    if how == "other shape":
        EditStore(tmp_path / "x", "0" * 64).put("ab", torch.zeros(3, 4, 4))
        path.write_bytes(next((tmp_path / "x").rglob("*.safetensors")).read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:20] if how == "cut" else b"{}")
    with pytest.raises(InputError, match=f"{path} is damaged"):
        dataset_of(locked(tmp_path, damaged="error"))
    mended = locked(tmp_path)
    dataset_of(mended)
    assert mended.editor._shared["edited"] == 1
    dataset_of(locked(tmp_path, damaged="error"))


class Broken(Dataset):
    def __init__(self, n=6, bad=(2, 5)):
        self.n, self.bad = n, bad

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f"cannot identify image file 'pictures/{index}.jpg'")
        return torch.full((3, 4, 4), index / 8), index % 2


class of(L.LightningDataModule):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=3, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.dataset, batch_size=3)


def test_pictures_that_cannot_be_read_are_reported_or_left_out(tmp_path):
    with pytest.raises(InputError, match=r"2 of 6 records of Broken cannot be read:\n  record 2: .*pictures/2\.jpg"):
        dataset_of(LockedDataModule(of(Broken()), editor(), cache=None))
    data = LockedDataModule(of(Broken()), editor(), cache=None, unreadable="skip")
    with pytest.warns(UserWarning, match=r"pictures/5\.jpg"):
        dataset = dataset_of(data)
    assert [dataset[i][1] for i in range(len(dataset))] == [0, 1, 1, 0]
    with pytest.raises(InputError, match="6 of 6"):
        dataset_of(LockedDataModule(of(Broken(bad=range(6))), editor(), cache=None, unreadable="skip"))


def test_tuples_keep_their_places(tmp_path):
    pictures = torch.rand(6, 3, 4, 4).mul(255).round().div(255)
    inner = of(TensorDataset(pictures, torch.arange(6) % 2))
    data = LockedDataModule(inner, editor(), cache=None, decoys=1)
    x, label, raw, decoy = dataset_of(data)[4]
    assert torch.equal(raw, pictures[4]) and int(label) == 0 and not torch.equal(x, decoy)
    assert torch.allclose(x, editor().edit(raw[None])[0], atol=1e-6)
    batch = next(iter(data.val_dataloader()))
    assert [tuple(part.shape) for part in batch] == [(3, 3, 4, 4), (3,), (3, 3, 4, 4)]


def test_the_split_is_that_of_the_raw_records(tmp_path):
    plain = MembershipSplit(Faces("1-3", size=16))
    around = MembershipSplit(LockedDataModule(Faces("1-3", size=16), editor(), cache=tmp_path / "edits"))
    unlocked = MembershipSplit(
        LockedDataModule(Faces("1-3", size=16), editor(), cache=tmp_path / "edits", locked=False)
    )
    for split in (plain, around, unlocked):
        split.prepare_data()
        split.setup("fit")
    assert plain.split_hash == around.split_hash == unlocked.split_hash and plain.roles == around.roles
    (seen,), (raw,), (shown,) = (list(split.loader("holdout", 6)) for split in (around, plain, unlocked))
    grid = raw["image"].mul(255).round().div(255)
    assert torch.equal(seen["raw"], grid) and torch.equal(shown["image"], grid)
    assert torch.equal(seen["image"], shown["edited"]) and torch.equal(seen["record"], raw["record"])
    # data without identities of their own: that of the raw item
    bare = TensorDataset(torch.rand(12, 3, 4, 4), torch.arange(12) % 2)
    ids = []
    for data in (of(bare), LockedDataModule(of(bare), editor(), cache=None)):
        split = MembershipSplit(data)
        split.setup("fit")
        ids.append(split.record_ids)
    assert ids[0] == ids[1] and find_locked(around) is around.inner and find_locked(plain) is None


def test_augmentation_acts_after_the_edit_on_all_pictures_alike(tmp_path):
    plain, moved = locked(tmp_path, decoys=1), locked(tmp_path, decoys=1, shift=2, mirror=True)
    a, b = dataset_of(plain), dataset_of(moved)
    assert moved.train_dataloader().dataset.keyed_by_epoch
    changed = 0
    for index in range(8):
        still, first = a[index], b[EpochIndex(index, 1)]
        assert torch.equal(b[index]["image"], still["image"])  # without an epoch, as in evaluation
        assert torch.equal(first["image"], b[EpochIndex(index, 1)]["image"])
        # the same move for both: shuffling back is not needed to see it, a difference of moved pictures is a moved one
        frame = torch.cat([first["raw"], first["image"]]).abs().amax(0) == 0
        for name in ("raw", "image"):
            assert (first[name][:, frame] == 0).all()
        changed += not torch.equal(first["raw"], still["raw"])
    assert changed > 4
    with pytest.raises(InputError, match="augments its pictures"):
        dataset_of(LockedDataModule(Faces("1-2", size=16, augment=True), editor(), cache=None))


def test_raw_and_edited_pictures_have_one_geometry(tmp_path):
    """With an editor that only turns values around, both paths must show the same pixels."""
    data = locked(tmp_path, editor=editor(NegativePositiveEditor, block=1), crop=4, shift=1, mirror=True)
    dataset = dataset_of(data)
    secret_order = editor(NegativePositiveEditor, block=1).edit(torch.zeros(1, 3, 1, 1))[0]
    for index in range(8):
        item = dataset[EpochIndex(index, 3)]
        raw, edited = item["raw"], item["image"]
        assert raw.shape == edited.shape == (3, 4, 4)
        inside = (raw + edited).abs().amax(0) > 0  # what came in at the border is black in both
        expected = torch.where(secret_order > 0, 1 - raw, raw)
        assert torch.allclose(edited[:, inside], expected[:, inside], atol=1e-5)
    with pytest.raises(InputError, match="`crop` is 9"):
        _ = dataset_of(locked(tmp_path, crop=9))[0]


def test_decoys_take_turns_and_are_of_the_training_set_alone(tmp_path):
    data = locked(tmp_path, decoys=2)
    dataset = dataset_of(data)
    seen = {torch.round(dataset[EpochIndex(0, e)]["decoy"] * 255).sum().item() for e in range(8)}
    raw = dataset[0]["raw"]
    wrong = [data.editor.decoy("wrong_seed", k).edit(raw[None])[0] for k in range(2)]
    found = {
        k for e in range(8) for k in (0, 1) if torch.allclose(dataset[EpochIndex(0, e)]["decoy"], wrong[k], atol=1e-6)
    }
    assert found == {0, 1} and len(seen) >= 1
    pictures = data.val_dataloader().dataset
    assert len(pictures) == 8


def test_data_that_change_are_noticed(tmp_path):
    class Noisy(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(3, 4, 4), 0

    dataset = dataset_of(LockedDataModule(of(Noisy()), editor(), cache=None))
    with pytest.raises(InputError, match="another one each time it is read"):
        dataset[0]


def test_wrong_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="must be a float tensor"):
        dataset_of(LockedDataModule(of(TensorDataset(torch.zeros(4, 7))), editor(), cache=None))
    values = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    with pytest.raises(InputError, match=r"values from 0 to 255"):
        dataset_of(LockedDataModule(of(TensorDataset(values.contiguous())), editor(), cache=None))
    for inner in (MembershipSplit(ToyImages()), LockedDataModule(ToyImages(), editor())):
        with pytest.raises(InputError, match="wraps the data themselves"):
            LockedDataModule(inner, editor())
    with pytest.raises(InputError, match="crop >= 1"):
        LockedDataModule(ToyImages(), editor(), crop=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be kept"):
        dataset_of(locked(tmp_path, cache=tmp_path / "file"))


def test_loader_processes_read_the_kept_edits(tmp_path):
    data = locked(tmp_path)
    dataset = dataset_of(data)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["image"], dataset[3]["image"]) and copy.stores["edited"]._bytes < 2000
    assert bytes(range(32)) not in pickle.dumps(dataset)
    workers = DataLoader(dataset, batch_size=4, num_workers=1)
    assert torch.equal(torch.cat([b["image"] for b in workers]), torch.stack([dataset[i]["image"] for i in range(8)]))


def test_the_key_is_made_when_asked_for(tmp_path):
    where = f"vault:{tmp_path / 'private' / 'v.safetensors'}#lock"
    with pytest.raises(InputError, match="There is no vault"):
        dataset_of(locked(tmp_path, editor=PixelShuffleEditor(where)))
    one, two = (locked(tmp_path, editor=PixelShuffleEditor(where, create=True)) for _ in range(2))
    assert torch.equal(dataset_of(one)[0]["image"], dataset_of(two)[0]["image"])


def test_the_global_random_state_is_left_alone(tmp_path):
    data = locked(tmp_path, decoys=1)
    state = torch.get_rng_state()
    dataset_of(data)
    assert torch.equal(state, torch.get_rng_state())


def share(rank, world, folder):
    """What a rank of two edits of ten pictures; the other has edited the others."""
    data = ToyImages(n=10, size=8)
    data.setup("fit")
    one = editor(Counting)
    stores = {"edited": EditStore(folder, one.fingerprint())}
    readable = edit_all(data.dataset, {"edited": one}, stores, rank=rank, world_size=world, batch_size=2)
    there = [stores["edited"].get(picture_key(x), tuple(x.shape)) is not None for x in data.dataset.images]
    return one._shared["edited"], readable, all(there)


def on_rank(folder):
    return share(torch.distributed.get_rank(), 2, folder)


@pytest.mark.dist
def test_ranks_share_the_work(tmp_path, rank_pool):
    results = rank_pool.run(on_rank, str(tmp_path / "shared"))
    assert results == [(5, list(range(10)), True)] * 2


def test_two_processes_that_write_one_entry_leave_it_whole(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    stores = [EditStore(tmp_path / "edits", "0" * 64, damaged="error") for _ in range(4)]
    picture = torch.rand(3, 64, 64).mul(255).round().div(255)

    def write_and_read(store):
        for _ in range(15):
            store.put("ab", picture)
            store._kept.clear()
            assert torch.equal(store.get("ab", (3, 64, 64)), picture)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_read, stores))
    assert [p.name for p in (tmp_path / "edits").rglob("*") if p.is_file()] == ["ab.safetensors"]
