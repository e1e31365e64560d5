import json
import os
import subprocess
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.testing.toy_data import ToyImages


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))

    def forward(self, x):
        return x - self.mean


class Net(nn.Module):
    """Nested layers, normalisation by statistics, dropout, a residual sum, a constant and a check of shapes."""

    def __init__(self):
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6))
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(6, 4)

    def forward(self, x):
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError("pictures have three channels")
        x = self.stem(self.normalise(x))
        return self.head(self.dropout(torch.relu(x + self.block(x)).mean((2, 3))))


class Classifier(L.LightningModule):
    def __init__(self, network=None, scale=2.0):
        super().__init__()
        self.network, self.scale = network or Net(), scale
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1)  # statistics that a fresh layer does not have

    def logits(self, batch):
        return self.network(self.scale * batch["image"])


@pytest.fixture(scope="session")
def split():
    found = MembershipSplit(ToyImages(n=60, size=8, batch_size=7))
    found.setup("fit")
    return found


@pytest.fixture
def make_classifier():
    """Return a function that makes a classifier, around a network of one's own if given."""
    return lambda network=None: Classifier(network).train()


@pytest.fixture
def make_result():
    """Return a function that makes a membership result with scores of its records."""

    def make(attack="rmia_online", members=30, nonmembers=40, shift=1.0, seed=0, **changes):
        rng = np.random.default_rng(seed)
        sides = rng.normal(shift, 1, members), rng.normal(0, 1, nonmembers)
        extra = {"threshold": 0.5, "sign": 1, "fit": {"member": 8, "nonmember": 9}}
        extra |= dict(zip(("member_scores", "nonmember_scores"), (side.tolist() for side in sides), strict=True))
        fields = {
            "family": "membership",
            "attack": attack,
            "access": "class scores",
            "seed": 3,
            "split_hash": "ab" * 32,
            "n": {"member": members, "holdout": nonmembers},
            "metrics": {"auroc": Metric(0.7, 0.6, 0.8), "tpr_at_fpr_0.001": Metric(0.1, valid=False, reason="few")},
            "fit_auroc": 0.66,
            "roc": ((0.0, 0.0), (0.5, 0.75), (1.0, 1.0)),
            "notes": ("a note",),
            "created": "2026-01-02T03:04:05+00:00",
            "extra": extra,
        }
        return AttackResult(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def sacro():
    """Return a function that runs a script in the Python that SACRO_PYTHON names and returns the JSON it prints last."""
    python = os.environ.get("SACRO_PYTHON")
    if not python:
        pytest.skip("SACRO-ML is an outside oracle: set SACRO_PYTHON to a Python that has sacroml 2")

    def run(script, *arguments, folder):
        command = [python, "-c", script, *map(str, arguments)]
        environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    run.executable = Path(python).parent / "sacroml"
    return run
