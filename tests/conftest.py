"""What every test gets: no network, no account, and nothing left behind for the next one."""

import os
import random
import socket

import hypothesis
import numpy as np
import pytest
import torch

from lightning_privacy.testing.ranks import RankPool

os.environ |= {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_OFFLINE": "1",
}
torch.set_num_threads(1)
# Nothing is timed: a first import inside an example, or a busy machine, is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_connect = socket.socket.connect


def _connect_locally(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"A test tried to reach {address[0]}: tests run without a network.")
    return _connect(self, address)


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    socket.socket.connect = _connect_locally
    yield
    socket.socket.connect = _connect


@pytest.fixture(autouse=True)
def _leave_nothing_behind():
    """Start every test from one seed; restore environment, random states and modes; no process group may be left."""
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    modes = torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    folder = os.getcwd()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    os.chdir(folder)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    torch.set_default_dtype(modes[0])
    torch.set_grad_enabled(modes[1])
    torch.use_deterministic_algorithms(modes[2])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("The test left a process group behind.")


@pytest.fixture(scope="session")
def rank_pool():
    """Two ranks, started at the first use and kept for the session."""
    with RankPool(2) as pool:
        yield pool
