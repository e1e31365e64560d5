"""A folder of pictures with one folder a class."""

import pytest
import torch
from PIL import Image

from lightning_privacy.datamodules.image_folder import ImageFolder, read_classes
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.errors import InputError
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.testing.fitting import fit


def paint(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten pictures a class, no two alike; of several formats, depths and shapes."""
    for index in range(10):
        paint(tmp_path / "zebra" / f"{index}.png", (index, 0, 0))
        paint(tmp_path / "ant" / "deep" / "er" / f"{index}.png", (0, index, 0), (9, 30))
        paint(tmp_path / "Bear" / f"{index}.bmp", (0, 0, index))
    paint(tmp_path / ".hidden" / "x.png", "red")
    paint(tmp_path / "ant" / ".thumbnails" / "x.png", "red")
    paint(tmp_path / "ant" / ".x.png", "red")
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / "LICENSE").write_text("no picture")
    return tmp_path


def folder(root, **options):
    data = ImageFolder(root, **{"size": 8, "batch_size": 4, "num_workers": 0, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_classes_are_numbered_by_name_and_hidden_files_ignored(root):
    data = folder(root)
    assert data.class_names == ["Bear", "ant", "zebra"] and len(data.dataset) == 30
    assert [data.dataset[i]["label"] for i in range(30)] == [0] * 10 + [1] * 10 + [2] * 10
    item = data.dataset[29]
    assert set(item) == {"image", "label", "record"} and item["image"].shape == (3, 8, 8)
    assert torch.allclose(item["image"], torch.tensor([9 / 255, 0, 0]).view(3, 1, 1).expand(3, 8, 8))
    assert data.dataset.metadata(29) == {"label": 2, "record": item["record"]}


def test_pictures_are_resized_by_the_shorter_side_and_cut_in_the_middle(tmp_path):
    picture = Image.new("RGB", (40, 16), "black")
    picture.paste("white", (12, 0, 28, 16))  # the middle square
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "x.png")
    image = folder(tmp_path).dataset[0]["image"]
    assert image[:, :, 1:-1].min() > 0.95 and image.shape == (3, 8, 8)


def test_augmentation_is_a_function_of_seed_epoch_and_file(tmp_path):
    noise = torch.randint(0, 256, (16, 40, 3), dtype=torch.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise.numpy()).save(tmp_path / "a" / "x.png")
    data, same = folder(tmp_path, augment=True).dataset, folder(tmp_path, augment=True).dataset
    assert torch.equal(data[EpochIndex(0, 1)]["image"], same[EpochIndex(0, 1)]["image"])
    assert not torch.equal(data[EpochIndex(0, 1)]["image"], data[EpochIndex(0, 2)]["image"])
    assert torch.equal(data[0]["image"], folder(tmp_path).dataset[0]["image"])


def test_everything_wrong_is_reported_by_path(root):
    (root / "zebra" / "torn.png").write_bytes((root / "zebra" / "0.png").read_bytes()[:40])
    (root / "empty").mkdir()
    paint(root / "astray.png", "red")
    with pytest.raises(InputError) as error:
        folder(root)
    text = str(error.value)
    assert "3 problem(s)" in text and f"{root}/empty: no pictures" in text
    assert f"{root}/astray.png: lies in no class's folder" in text and f"{root}/zebra/torn.png: corrupt picture" in text


def test_no_folder_and_no_classes(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_classes(tmp_path / "none")
    paint(tmp_path / "alone.png", "red")
    with pytest.raises(InputError, match="one folder a class"):
        read_classes(tmp_path)


def test_it_trains_on_all_classes(tmp_path, root):
    data = MembershipSplit(folder(root, augment=True))
    module = ImageClassifier("small_cnn", classes=3, image_size=8)
    fitted = fit(tmp_path / "run", module, data, fast_dev_run=True)
    assert "val/accuracy" in fitted.trainer.callback_metrics
    assert {data.pool.dataset.labels[i] for i in data.roles["member"]} == {0, 1, 2}
