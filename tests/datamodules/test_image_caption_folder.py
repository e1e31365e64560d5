"""A folder of captioned pictures: every way to be wrong, and every kind of picture."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_privacy.datamodules.image_caption_folder import ImageCaptionFolder
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.errors import InputError


def picture(path, colour=(200, 100, 50), size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def captioned(path, caption="a cat", **options):
    picture(path, **options)
    path.with_suffix(".txt").write_text(caption)
    return path


def load(root, **options):
    data = ImageCaptionFolder(root, **{"size": 16, "batch_size": 2, "num_workers": 0, **options})
    data.prepare_data()
    data.setup("fit")
    return data.dataset


def metadata(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def test_both_conventions_recursively(tmp_path):
    captioned(tmp_path / "b" / "deep" / "x.PNG", " beside \n")
    picture(tmp_path / "a" / "sub" / "y.jpg")
    metadata(tmp_path / "a", {"file_name": "sub/y.jpg", "text": "in the list", "other": 1}, "")
    captioned(tmp_path / ".hidden" / "z.png", "")
    data = load(tmp_path)
    assert [data[i]["caption"] for i in range(len(data))] == ["in the list", "beside"]
    assert data.record_id(0) == hashlib.sha256((tmp_path / "a" / "sub" / "y.jpg").read_bytes()).hexdigest()
    assert data[0]["image"].shape == (3, 16, 16)
    relative = load(tmp_path / "b" / ".." / "a", caption_key="text")
    assert len(relative) == 1


def test_everything_wrong_is_reported_at_once(tmp_path):
    captioned(tmp_path / "good.png")
    captioned(tmp_path / "empty_caption.png", " \n")
    picture(tmp_path / "no_caption.png")
    whole = captioned(tmp_path / "cut.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    captioned(tmp_path / "noise.png").write_bytes(b"no picture at all")
    captioned(tmp_path / "zero.webp").write_bytes(b"")
    broken = captioned(tmp_path / "chunk.png").read_bytes()
    (tmp_path / "chunk.png").write_bytes(broken[:40] + b"\xff" * 8 + broken[48:])
    captioned(tmp_path / "latin.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    picture(tmp_path / "m" / "twice.png")
    picture(tmp_path / "m" / "blank.png")
    metadata(
        tmp_path / "m",
        {"file_name": "twice.png", "text": "a"},
        {"file_name": "twice.png", "text": "b"},
        {"file_name": "gone.png", "text": "c"},
        {"file_name": "blank.png", "text": ""},
        {"text": "d"},
        "{",
    )
    data = ImageCaptionFolder(tmp_path)
    with pytest.raises(InputError) as caught:
        data.prepare_data()
    message = str(caught.value)
    assert "12 problem(s)" in message
    assert "... and 2 more" in message
    assert message.count("\n  /") == 10
    (tmp_path / "m" / "metadata.jsonl").unlink()
    captioned(tmp_path / "m" / "twice.png")
    captioned(tmp_path / "m" / "blank.png")
    with pytest.raises(InputError) as caught:
        data.prepare_data()
    lines = str(caught.value).splitlines()[1:-1]
    for name, reason in {
        "empty_caption.txt": "empty caption file",
        "no_caption.png": "no caption",
        "cut.jpg": "corrupt picture",
        "noise.png": "corrupt picture",
        "zero.webp": "corrupt picture",
        "chunk.png": "corrupt picture",
        "latin.txt": "cannot be read",
    }.items():
        assert [line for line in lines if f"/{name}: {reason}" in line], name
    assert len(lines) == 7


def test_folders_without_pictures(tmp_path):
    with pytest.raises(InputError, match="holds no pictures"):
        load(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_kinds_of_pixels(tmp_path):
    captioned(tmp_path / "a_grey.png", mode="L", colour=128)
    captioned(tmp_path / "b_half.png", mode="RGBA", colour=(255, 0, 0, 0))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "c_palette.png")
    (tmp_path / "c_palette.txt").write_text("p")
    Image.fromarray(np.full((20, 20), 32768, np.uint16)).save(tmp_path / "d_deep.png")
    (tmp_path / "d_deep.txt").write_text("d")
    captioned(tmp_path / "e_cmyk.jpg", mode="CMYK", colour=(0, 0, 0, 0))
    palette.save(tmp_path / "f_clear.png", transparency=1)
    (tmp_path / "f_clear.txt").write_text("p")
    data = load(tmp_path)
    colours = [(data[i]["image"].amin((1, 2)) + data[i]["image"].amax((1, 2))).div(2).tolist() for i in range(6)]
    wanted = [[0.502] * 3, [1, 1, 1], [0, 1, 0], [0.502] * 3, [1, 1, 1], [1, 1, 1]]
    assert torch.allclose(torch.tensor(colours), torch.tensor(wanted), atol=0.01)


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left half becomes the top
    image.save(tmp_path / "x.png", exif=exif)
    (tmp_path / "x.txt").write_text("x")
    top, bottom = load(tmp_path, size=10)[0]["image"].mean((0, 2)).split(5)
    assert top.mean() > 0.8 > 0.2 > bottom.mean()


def test_crop_and_flip_are_functions_of_seed_epoch_and_file(tmp_path):
    for index in range(6):
        ramp = np.arange(64, dtype=np.uint8)[None].repeat(16, 0) * 4
        Image.fromarray(np.roll(ramp, index, 1)).convert("RGB").save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("ramp")
    plain, moved = load(tmp_path), load(tmp_path, random_crop=True, flip=True)
    flipped = load(tmp_path, flip=True)

    def views(data, epoch):
        return torch.stack([data[EpochIndex(i, epoch)]["image"] for i in range(6)])

    middle = torch.stack([plain[i]["image"] for i in range(6)])
    assert torch.equal(middle, torch.stack([moved[i]["image"] for i in range(6)]))
    assert torch.equal(middle, views(plain, 3))
    assert torch.equal(views(moved, 3), views(moved, 3))
    assert not torch.equal(views(moved, 3), views(moved, 4))
    for view, raw in zip(views(flipped, 1), middle, strict=True):
        assert torch.equal(view, raw) or torch.equal(view, raw.flip(2))
    # A cut of a 64 wide picture at 16: values of one cut span a quarter of the ramp.
    assert middle[0, 0, 0, 0] == pytest.approx(24 * 4 / 255)


def test_copies_share_a_role_and_vanished_files_are_named(tmp_path):
    for index in range(20):
        captioned(tmp_path / f"{index:02}.png", f"caption {index}", colour=(index * 10, 0, 0))
    for index in range(3):
        copy = tmp_path / f"copy{index}.png"
        copy.write_bytes((tmp_path / f"{index:02}.png").read_bytes())
        copy.with_suffix(".txt").write_text("another caption")
    split = MembershipSplit(ImageCaptionFolder(tmp_path, size=8, batch_size=2, num_workers=0))
    split.prepare_data()
    split.setup("fit")
    assert (split.split_record["records"], split.split_record["distinct"]) == (23, 20)
    for role in ("member", "aux_nonmember", "attack_nonmember", "val", "holdout"):
        others = {
            split.record_ids[i]
            for other, found in split.roles.items()
            if other not in (role, "aux_member", *(["member"] if role == "aux_member" else []))
            for i in found
        }
        assert not others & {split.record_ids[i] for i in split.roles[role]}
    victim = split.pool.dataset.files[split.roles["val"][0]].path
    victim.unlink()
    with pytest.raises(InputError, match=str(victim)):
        list(split.val_dataloader())
