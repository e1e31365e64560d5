"""A run that is killed in the middle of an epoch and started again is the run that nobody killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightning_privacy.cli.main import main
from lightning_privacy.resources import recipe

COMMAND = [
    "fit", "--config", str(recipe("smp_lora_faces")), "--ckpt_path", "last", "--trainer.logger", "false",
    "--trainer.max_epochs", "2", "--trainer.num_sanity_val_steps", "0", "--trainer.limit_val_batches", "1",
    "--model.rank", "2", "--model.pictures_every_n_epochs", "0", "--data.inner.people", "21-30",
    "--data.inner.batch_size", "5", "--defences.smp_lora.aux_batch_size", "2",
    "--audits.membership", "null", "--audits.quality", "null",
    "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename", "last",
    "--trainer.callbacks.every_n_train_steps", "1", "--trainer.callbacks.enable_version_counter", "false",
]  # fmt: skip
STEPS, PER_EPOCH = 12, 6


def flat(value, path=""):
    """Every tensor and number of a checkpoint by its path."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}/{name}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    return {path: value}


def arguments(name):
    return [*COMMAND, "--run_name", name, "--trainer.callbacks.dirpath", f"runs/{name}/checkpoints"]


def checkpoint(folder, name):
    return torch.load(folder / "runs" / name / "checkpoints/last.ckpt", weights_only=True)


def test_kill_nine_in_the_middle_of_an_epoch_changes_no_tensor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = [sys.executable, "-c", "import sys; from lightning_privacy.cli.main import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*program, *arguments("killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # another number of threads sums in another order
    )
    last, deadline = tmp_path / "runs/killed/checkpoints/last.ckpt", time.monotonic() + 240
    while not last.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"The run ended before it was killed: {process.stderr.read().decode()[-2000:]}")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    at = checkpoint(tmp_path, "killed")["global_step"]
    assert 0 < at < PER_EPOCH

    assert main(arguments("killed")) == 0
    assert main(arguments("whole")) == 0
    killed, whole = (flat(checkpoint(tmp_path, name)) for name in ("killed", "whole"))
    assert whole["/global_step"] == STEPS
    kept = ("/state_dict/", "/optimizer_states/", "/callbacks/defence:smp_lora", "/lightning_privacy")
    names = [n for n in whole if n.startswith(kept)]
    assert sum("/proxy/" in n for n in names) > 10 and sum("lora_" in n for n in names) > 10
    differ = [n for n in names if not same(killed[n], whole[n])]
    assert not differ and set(killed) >= set(names)


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
