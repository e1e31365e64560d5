"""torchvision's data sets: tiny ones in the real formats, and what is said where they are not there."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.torchvision_images import TorchvisionImages, lacking_files
from lightning_privacy.errors import InputError
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.testing.fitting import fit

BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in its real format, with 12 pictures a file, and torchvision's list of md5 to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*BATCHES, "test_batch"]):
        rows, labels = pixels(12, 3072, seed=number), [(number + i) % 10 for i in range(12)]
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels, "data": rows, "labels": labels}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, 2))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5(folder / name)] for name in BATCHES])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


def opened(name, root, **options):
    data = TorchvisionImages(name, root, **{"num_workers": 0, "batch_size": 4, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_training_part_of_cifar_is_read_in_order(cifar):
    data = opened("CIFAR10", cifar)
    assert len(data.dataset) == 60
    item = data.dataset[13]  # the second of the second file; rows are red, green and blue planes
    assert item["label"] == 2 and set(item) == {"image", "label", "record"}
    expected = torch.from_numpy(pixels(12, 3072, seed=1)[1].reshape(3, 32, 32)).float() / 255
    assert torch.equal(item["image"], expected)


def test_cifar_trains_inside_a_split(tmp_path, cifar):
    module = ImageClassifier("small_cnn", image_size=32)
    fitted = fit(tmp_path / "run", module, MembershipSplit(opened("CIFAR10", cifar, augment=True)), fast_dev_run=True)
    assert "train/loss" in fitted.trainer.callback_metrics


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_pickle_is_never_opened(cifar, name):
    path = cifar / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(_Bomb()))
    data = TorchvisionImages("CIFAR10", cifar, download=False)
    for step in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(InputError, match=rf"{path}: changed or incomplete"):
            step()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("CIFAR10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"]),
        ("CIFAR100", ["cifar-100-python/train", "cifar-100-python/meta"]),
        ("MNIST", ["MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"]),
        ("FashionMNIST", ["FashionMNIST/raw/train-images-idx3-ubyte"]),
        ("SVHN", ["train_32x32.mat"]),
        ("OxfordIIITPet", ["oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trainval.txt"]),
        ("CelebA", ["celeba/list_attr_celeba.txt", "celeba/img_align_celeba"]),
    ],
)
def test_missing_files_are_listed_with_what_to_do(tmp_path, name, files):
    options = {"target": "Smiling"} if name == "CelebA" else {}
    with pytest.raises(InputError) as error:
        TorchvisionImages(name, tmp_path, download=False, **options).prepare_data()
    text = str(error.value)
    assert text.startswith(f"TorchvisionImages: {name} is not complete under root {tmp_path}, and `download` is false")
    assert all(f"{tmp_path}/{file}: missing" in text for file in files)
    assert "Set `root`" in text and f"{name}('data', download=True)" in text


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN"])
def test_without_a_network_the_reason_is_one_error(tmp_path, name):
    data = TorchvisionImages(name, tmp_path)
    with pytest.raises(InputError, match=rf"{name} is not complete .*, and fetching it failed \(\w+Error: "):
        data.prepare_data()
    with pytest.raises(InputError, match="is not complete"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_files(tmp_path, name):
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    images, labels = pixels(10, 28, 28), np.arange(10, dtype=np.uint8)
    for part in ("train", "t10k"):
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, 10, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"".join(n.to_bytes(4, "big") for n in (0x801, 10)) + labels.tobytes()
        )
    item = opened(name, tmp_path).dataset[7]
    assert item["label"] == 7 and torch.equal(item["image"], torch.from_numpy(images[7:8]).float() / 255)
    (raw / "train-images-idx3-ubyte").write_bytes(b"torn")
    with pytest.raises(InputError, match=f"{name} .* cannot be read"):
        opened(name, tmp_path)


def test_svhn(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    images = pixels(10, 3, 32, 32)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
    entry = [*datasets.SVHN.split_list["train"][:2], md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, "train": entry})
    data = opened("SVHN", tmp_path).dataset
    assert [data[i]["label"] for i in (0, 9)] == [1, 0]  # its files write 10 for the digit 0
    assert torch.equal(data[4]["image"], torch.from_numpy(images[4]).float() / 255)


def test_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations"):
        (base / folder).mkdir(parents=True)
    lines = [("Abyssinian_1", 1, 1, 1), ("beagle_7", 5, 2, 4)]
    for name, breed, *_ in lines:
        Image.new("RGB", (40, 30), (10 * breed, 0, 0)).save(base / "images" / f"{name}.jpg")
    (base / "annotations" / "trainval.txt").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    data = opened("OxfordIIITPet", tmp_path, size=16).dataset
    assert [data.metadata(i)["label"] for i in (0, 1)] == [0, 4]
    assert data[1]["image"].shape == (3, 16, 16) and abs(data[1]["image"][0].mean().item() - 50 / 255) < 0.02
    (base / "images" / "beagle_7.jpg").unlink()
    with pytest.raises(InputError, match=r"beagle_7\.jpg"):
        opened("OxfordIIITPet", tmp_path)


def test_celeba_has_a_target_and_a_sensitive_attribute(tmp_path, monkeypatch):
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 5)]
    for index, name in enumerate(names):
        Image.new("RGB", (17, 21), (50 * index, 0, 0)).save(base / "img_align_celeba" / name)
    signs = ["1 -1", "-1 1", "1 1", "1 1"]
    rows = {
        "list_eval_partition.txt": [f"{n} {int(i == 3)}" for i, n in enumerate(names)],
        "identity_CelebA.txt": [f"{n} {i}" for i, n in enumerate(names)],
        "list_bbox_celeba.txt": ["4", "image_id x_1 y_1 width height", *(f"{n} 0 0 1 1" for n in names)],
        "list_landmarks_align_celeba.txt": ["4", "a b", *(f"{n} 0 0" for n in names)],
        "list_attr_celeba.txt": ["4", "Male Smiling ", *(f"{n} {values}" for n, values in zip(names, signs, strict=True))],
    }  # fmt: skip
    for name, lines in rows.items():
        (base / name).write_text("\n".join(lines) + "\n")
    listed = [(key, md5(base / file) if file in rows else sum_, file) for key, sum_, file in datasets.CelebA.file_list]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    data = opened("CelebA", tmp_path, target="Smiling", sensitive="Male", size=16).dataset
    assert len(data) == 3  # the fourth is for validation
    items = [data[i] for i in range(3)]
    assert [item["label"] for item in items] == [0, 1, 1] and [item["sensitive"] for item in items] == [1, 0, 1]
    assert items[0]["image"].shape == (3, 16, 16)
    assert "sensitive" not in opened("CelebA", tmp_path, target="Male").dataset[0]
    with pytest.raises(InputError, match="no attribute `sensitive: Bald`; it has Male, Smiling"):
        opened("CelebA", tmp_path, target="Male", sensitive="Bald")


def test_arguments_that_do_not_fit():
    with pytest.raises(InputError, match="target: Smiling"):
        TorchvisionImages("CelebA")
    with pytest.raises(InputError, match="are CelebA's"):
        TorchvisionImages("CIFAR10", sensitive="Male")
    with pytest.raises(InputError, match="have 28 pixels"):
        TorchvisionImages("MNIST", size=32)


def test_nothing_lacks_where_all_is_there(cifar):
    assert lacking_files("CIFAR10", cifar) == []
