"""A lock whose secrets are a key and two layers, a model that has one, and its twin in plain PyTorch."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_privacy.secrets import KeyVault, SecretModule, zero_mean_key

CHANNELS, KEY = 4, 64


class _Lock:
    """Gains and shifts from a key: softplus(A k + a) and B k + b."""

    def __init__(self, key_size=KEY, channels=CHANNELS):
        super().__init__()
        self.scale = nn.Linear(key_size, channels)
        self.shift = nn.Linear(key_size, channels)
        self.register_buffer("key", torch.randn(key_size), persistent=False)
        self.calls = []

    def forward(self, x):
        gain, shift = F.softplus(self.scale(self.key)), self.shift(self.key)
        self.calls = [gain.detach(), {"shift": shift}]  # what a careless layer keeps in plain attributes
        return gain * x + shift


class SecretLock(_Lock, SecretModule):
    pass


class ExposedLock(_Lock, nn.Module):
    pass


class Net(L.LightningModule):
    def __init__(self, lock=SecretLock, optimizer="sgd"):
        super().__init__()
        self.make = optimizer
        self.first = nn.Linear(3, CHANNELS)
        self.norm = nn.BatchNorm1d(CHANNELS, affine=False)
        self.lock = lock()
        self.head = nn.Linear(CHANNELS, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.lock(self.norm(self.first(x)))))

    def training_step(self, batch, batch_idx):
        x = batch
        return F.mse_loss(self(x).squeeze(1), x.sum(1))

    def configure_optimizers(self):
        if self.make == "adam":
            return torch.optim.Adam(self.parameters(), lr=0.01)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self):
        data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
        return DataLoader(data, batch_size=8)


@pytest.fixture
def make_net():
    def _make(lock=SecretLock, optimizer="sgd", seed=0):
        torch.manual_seed(seed)
        return Net(lock, optimizer)

    return _make


@pytest.fixture
def exposed():
    return ExposedLock


@pytest.fixture
def secret_lock():
    return SecretLock


@pytest.fixture
def trainer(tmp_path):
    def _trainer(callbacks=(), **settings):
        settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | settings
        return L.Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    return _trainer


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "keys.safetensors")


@pytest.fixture
def gauss():
    """A key whose numbers are all different."""
    return zero_mean_key(KEY, "normal")


def secrets_of(net):
    """The secrets of a net's lock, by the names they have in a vault."""
    lock = net.lock
    return {f"lock/{name}": value.detach().clone() for name, value in (*lock.named_parameters(), *lock.named_buffers())}


@pytest.fixture
def kept():
    return secrets_of
