"""Modules to lock, and short runs of them."""

import pytest
import torch
from torch import nn

from lightning_privacy.secrets import KeyVault
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier


def classifier(norm=True):
    module = TinyClassifier()
    if norm:
        module.network.conv1 = nn.Sequential(module.network.conv1, nn.BatchNorm2d(4))
        module.scores = nn.LayerNorm(4)
    return module


@pytest.fixture
def make():
    return classifier


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Conv2d(4, 6, 3),
        nn.GroupNorm(2, 6),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(6 * 36, 4),
    )


@pytest.fixture
def batch():
    torch.manual_seed(4)
    return torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1])


@pytest.fixture
def vault(tmp_path):
    vault = KeyVault.create(tmp_path / "keys.safetensors")
    vault.put_master("alice")
    return vault


@pytest.fixture
def run(tmp_path):
    def _run(module, defence, *more, **options):
        return fit(tmp_path / "run", module, plain_images(8), [defence, *more], **options)

    return _run
