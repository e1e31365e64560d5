"""The verb audit over several processes, started by Lightning and by torchrun."""

import os
import shutil
import subprocess
import sys

import pytest

from lightning_privacy import resources
from lightning_privacy.cli.main import main
from lightning_privacy.core.run_folder import RunFolder

RECIPE = str(resources.recipes_folder() / "audit_faces_classifier.yaml")
AUDIT = ["--audits.membership.attacks=[averaged_loss,rmia_online]", "--audits.structural={}"]
AUDIT += [
    "--audits.membership.bootstrap",
    "20",
    "--audits.membership.shadows",
    "2",
    "--audits.structural.bootstrap",
    "20",
]
COMMAND = ["-m", "lightning_privacy.cli", "audit", "two", *AUDIT]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A folder with a run called ``two`` that was not audited but has its shadows, and what one process finds."""
    folder = tmp_path_factory.mktemp("ranks")
    options = ["--data.inner.people", "1-10", "--data.inner.size", "8", "--model.image_size", "8"]
    options += ["--trainer.max_epochs", "2", "--trainer.logger", "false", "--audits.membership", "null"]
    assert main(["fit", "--config", RECIPE, *options, "--run_dir", str(folder / "two")]) == 0
    assert main(["audit", str(folder / "two"), *AUDIT, "--shadows-only", "0/1"]) == 0
    shutil.copytree(folder / "two", folder / "one")
    assert main(["audit", str(folder / "one"), *AUDIT]) == 0
    return folder, RunFolder(folder / "one").results()


@pytest.mark.parametrize(
    "launch",
    [
        [*COMMAND, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        pytest.param(  # half a minute, to launch the same two processes otherwise
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *COMMAND], marks=pytest.mark.slow
        ),
    ],
    ids=["lightning", "torchrun"],
)
def test_two_ranks_find_what_one_finds(launch, audited):
    folder, alone = audited
    RunFolder(folder / "two").results_file.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, *launch],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together = RunFolder(folder / "two").results()
    assert [(r.attack, r.metrics, r.extra) for r in together] == [(r.attack, r.metrics, r.extra) for r in alone]
    assert done.stdout.count("strongest on fit data") == 1
