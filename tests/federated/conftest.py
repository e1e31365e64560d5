"""A classifier with a locked layer, a client's parts, and Flower in one process."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.datamodules.client_part import ClientPart
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.federated.rounds import ClientParts
from lightning_privacy.secrets import KeyVault
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.toy_data import ToyImages


class WithVal(ToyImages):
    """Toy pictures that are validated on, too."""

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataloader().dataset, batch_size=4)


def classifier():
    module = TinyClassifier()
    module.network.conv1 = nn.Sequential(module.network.conv1, nn.BatchNorm2d(4))
    return module


def parts_of(folder, client=0, clients=2, defences=None, **options):
    key = f"vault:{folder}/keys.safetensors#master"
    locks = [KeyLock(key=key, site=f"client-{client}", key_length=64)] if defences is None else defences
    data = ClientPart(WithVal(n=16, size=8, batch_size=4), client, clients)
    return ClientParts(classifier(), data, locks, {"accelerator": "cpu"}, seed=client, **options)


@pytest.fixture
def parts():
    return parts_of


@pytest.fixture
def private(tmp_path):
    """A client's private state, with a vault of its own."""
    state = PrivateState(tmp_path / "private")
    KeyVault.create(state.folder / "keys.safetensors").put_master("master")
    return state


@pytest.fixture
def one_process():
    """The class of a Flower grid that calls ClientApps in this process."""
    spec = importlib.util.spec_from_file_location("in_process", Path(__file__).with_name("in_process.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OneProcess
