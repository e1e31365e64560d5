"""Objects in COCO's format: positions follow the picture, what is wrong is named, identities are the raw files'."""

import json

import pytest
import torch

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from lightning_privacy.datamodules.coco_detection import CocoDetection, collate_objects
from lightning_privacy.datamodules.coco_files import read_annotations
from lightning_privacy.datamodules.letterbox import letterbox_masks, letterbox_picture
from lightning_privacy.datamodules.locked import LockedDataModule
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.target_geometry import mirror_target
from lightning_privacy.editors import LockSecret, NegativePositiveEditor, PixelShuffleEditor
from lightning_privacy.errors import InputError
from lightning_privacy.testing.drawn_objects import NAMES, write_drawn_objects


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_drawn_objects(tmp_path_factory.mktemp("coco"), n=12, size=48)


def data_of(coco, **more):
    return CocoDetection(*coco, **{"size": 48, "batch_size": 4, "num_workers": 0, **more})


def test_boxes_and_outlines_lie_on_the_objects(coco):
    data = data_of(coco, size=96)
    data.setup("fit")
    assert list(data.class_names) == list(NAMES) and len(data.dataset) == 12
    for item in (data.dataset[i] for i in range(12)):
        target = item["target"]
        assert item["image"].shape == (3, 96, 96) and target["masks"].shape[1:] == (96, 96)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) >= 1
        # of the object that was drawn last, nothing is covered: its middle has its colour, its box is its outline's
        x1, y1, x2, y2 = target["boxes"][-1].tolist()
        red, _, blue = item["image"][:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
        assert (red > blue) == (int(target["labels"][-1]) == NAMES.index("square"))
        rows, columns = target["masks"][-1].nonzero().T
        drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (drawn - target["boxes"][-1]).abs().max() <= 3


def test_a_wide_picture_is_neither_cut_nor_stretched():
    picture, mask = torch.zeros(3, 10, 40), torch.zeros(1, 10, 40, dtype=torch.uint8)
    mask[0, 2:6, 10:20] = 1
    square, scale = letterbox_picture(picture, 20)
    assert scale == 0.5 and (square[:, :5] == 0).all() and (square[:, 5:] == 0.5).all()
    small = letterbox_masks(mask, 20)
    assert small[0, 1:3, 5:10].all() and small.sum() == 10


def test_a_mirrored_target_lies_where_a_mirrored_mask_does():
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, 2:4, 1:5] = 1
    found = mirror_target({"boxes": torch.tensor([[1.0, 2, 5, 4]]), "labels": torch.tensor([0]), "masks": mask}, 8)
    assert found["boxes"].tolist() == [[3, 2, 7, 4]] and found["masks"][0, 2:4, 3:7].all()
    assert mirror_target(found, 8)["boxes"].tolist() == [[1, 2, 5, 4]]


def test_inside_a_lock_and_a_split_pictures_move_with_their_objects_and_keep_their_identity(coco):
    editor = NegativePositiveEditor.with_secret(LockSecret(seed=bytes(32)), block=8)
    fractions = {"member": 0.5, "attack_nonmember": 0.2, "aux_nonmember": 0.0, "val": 0.1, "holdout": 0.2}
    plain = MembershipSplit(data_of(coco), fractions=fractions)
    locked = MembershipSplit(LockedDataModule(data_of(coco), editor, cache=None, mirror=True), fractions=fractions)
    for each in (plain, locked):
        each.prepare_data()
        each.setup("fit")
    assert plain.split_hash == locked.split_hash
    known = {}
    for batch in plain.loader("member", 2):
        for row, record in enumerate(batch["record"].tolist()):
            known[record] = batch["image"][row], batch["target"][row]
    seen = {True: 0, False: 0}
    for _ in range(3):
        for batch in locked.train_dataloader():
            assert not torch.equal(batch["image"], batch["raw"])
            for row, record in enumerate(batch["record"].tolist()):
                picture, target = known[record]
                mirrored = not torch.allclose(batch["raw"][row], picture, atol=1e-6)
                seen[mirrored] += 1
                wanted = mirror_target(target, 48) if mirrored else target
                assert torch.allclose(batch["raw"][row], picture.flip(2) if mirrored else picture, atol=0.003)
                assert torch.equal(batch["target"][row]["boxes"], wanted["boxes"])
                assert torch.equal(batch["target"][row]["masks"], wanted["masks"])
        break
    assert seen[True] + seen[False] == 6


def test_a_lock_refuses_to_cut_objects_off(coco):
    editor = PixelShuffleEditor.with_secret(LockSecret(seed=bytes(32)))
    data = LockedDataModule(data_of(coco), editor, cache=None, shift=2)
    data.setup("fit")
    with pytest.raises(InputError, match="would cut objects off"):
        next(iter(data.train_dataloader()))


def test_a_batch_has_stacked_pictures_and_a_list_of_targets():
    items = [{"image": torch.zeros(3, 2, 2), "target": {"boxes": torch.zeros(n, 4)}, "record": n} for n in (0, 2)]
    batch = collate_objects(items)
    assert batch["image"].shape == (2, 3, 2, 2) and batch["record"].tolist() == [0, 2]
    assert [len(target["boxes"]) for target in batch["target"]] == [0, 2]


def changed(coco, tmp_path, change):
    found = json.loads(coco[1].read_text())
    change(found)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(found))
    return coco[0], file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["images"][0].update(file_name="gone.png"), "gone.png: there is no such picture"),
        (lambda f: f["annotations"][0].update(image_id=99), "annotation 1: of no listed picture"),
        (lambda f: f["annotations"][1].update(category_id=3), "annotation 2: of the unknown category 3"),
        (lambda f: f["annotations"][1].update(bbox=[1, 2]), "no `bbox` of four numbers"),
        (lambda f: f.update(annotations=[]), "lists no picture with an object"),
        (lambda f: f.pop("images"), "cannot be read as annotations"),
    ],
)
def test_what_is_wrong_with_annotations_is_said(coco, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        read_annotations(*changed(coco, tmp_path, change))


def test_crowds_are_left_out_and_pictures_without_objects_too(coco, tmp_path):
    def crowd(found):
        for each in found["annotations"]:
            each["iscrowd"] = int(each["image_id"] == 1)

    assert len(read_annotations(*changed(coco, tmp_path, crowd)).files) == 11
    assert len(read_annotations(*changed(coco, tmp_path, crowd), empty=True).files) == 12


def test_a_corrupt_picture_and_one_of_another_size_are_named(coco, tmp_path):
    pictures, file = write_drawn_objects(tmp_path, n=2, size=48)
    (pictures / "0001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0001\.png: corrupt picture"):
        data_of((pictures, file)).setup("fit")
    data = data_of(changed(coco, tmp_path, lambda f: f["images"][0].update(width=50)))
    data.setup("fit")
    with pytest.raises(InputError, match="its annotations are for 50 by 48"):
        data.dataset[0]
