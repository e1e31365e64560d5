"""What a shadow model's key tells of code: the user's files, with what they import, and this package as a whole."""

import importlib
import sys

import lightning.pytorch as L
import pytest
from torch import nn

from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.shadows import key as key_file
from lightning_privacy.shadows.canonical import class_sources
from lightning_privacy.shadows.sources import folder_digest
from lightning_privacy.testing.toy_data import ToyImages


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3 * 16, 4)


def build(seed):
    return Linear(), []


@pytest.fixture(scope="module")
def split():
    made = MembershipSplit(ToyImages(n=24, size=4))
    made.prepare_data()
    made.setup("fit")
    return made


def make_pool(build, split):
    return ShadowPool(build, split, 2, trainer={"accelerator": "cpu"}, folder="unused")


MODULE = """
import torch, lightning.pytorch as L
from {name}_loss import my_loss
class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(48, 4)
    def training_step(self, batch, batch_idx):
        return factor() * my_loss(self.net(batch["image"].flatten(1)), batch["label"])
def factor():
    return 1
def build(seed):
    return Model(), []
"""
LOSS = "from torch.nn.functional import cross_entropy as my_loss\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a user's two modules and return their key; every call imports them anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = "a_users_model"

    def key(split, model="", loss=LOSS):
        (tmp_path / f"{name}.py").write_text(model or MODULE.format(name=name))
        (tmp_path / f"{name}_loss.py").write_text(loss)
        importlib.invalidate_caches()
        for each in (name, f"{name}_loss"):
            monkeypatch.delitem(sys.modules, each, raising=False)
        return make_pool(importlib.import_module(name).build, split).path(0).name

    return key


def test_a_helper_in_the_users_file_or_in_one_that_it_imports_is_part_of_the_key(split, project):
    plain, text = project(split), MODULE.format(name="a_users_model")
    assert project(split, text + "\n# only a remark\n") == plain
    assert project(split, text.replace("return 1", "return 2")) != plain
    assert project(split, loss=LOSS.replace("cross_entropy", "multi_margin_loss")) != plain
    assert project(split) == plain


def test_every_file_of_this_package_is_part_of_the_key(tmp_path, split):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/mixup.py").write_text("share = 1\n")
    (tmp_path / "__init__.py").write_text("")
    one = folder_digest(tmp_path)
    (tmp_path / "modules/mixup.py").write_text("share = 2\n")
    assert one != folder_digest(tmp_path)
    assert make_pool(build, split).parts(0)["code"] == key_file._package()["code"]


def test_classes_that_are_in_no_file_are_told_apart_by_their_instructions():
    def typed(body):
        space = {"__name__": "prompt"}
        exec(f"class Typed:\n    def step(self):\n        return {body}", space)
        return class_sources([space["Typed"]])

    assert typed("1 + 1") == typed("1 + 1") != typed("1 + 2")
