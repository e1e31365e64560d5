"""Flower's own engine, as processes over loopback: the command, its errors, and every byte that the server receives."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("flwr", reason="needs the extra `flower`")

from safetensors.torch import load_file

from lightning_privacy import resources
from lightning_privacy.cli.federate import run
from lightning_privacy.cli.federate_config import Settings, write_folders
from lightning_privacy.cli.main import main
from lightning_privacy.errors import InputError
from lightning_privacy.federated.flower.loopback import Loopback, free_port, run_on_loopback
from lightning_privacy.federated.flower.processes import Processes
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.secrets import find_secrets

RECIPE = resources.recipes()["fedkl_faces"]
FEW = ["--data.inner.people", "1-20", "--model.init_args.classes", "20", "--trainer.logger", "false"]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left_over(mark):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(mark).encode() in (place / "environ").read_bytes() and int(place.name) != os.getpid():
                found.append((place / "cmdline").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--clients", "1"], "at least 2 clients"),
        (["--rounds", "0"], "1 round"),
        (["--clients", "300"], "has 200 training records, fewer than the 300 clients"),
        (["--strategy", "FedProx"], "no strategy 'FedProx'"),
        (["--defences.key_lock.key", "vault:all.safetensors#x"], "makes a vault for each client"),
        (["--trainer.devices", "2"], "one device"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_started(workspace, capsys, args, words):
    assert main(["federate", "--config", str(RECIPE), *FEW, *args]) == 1
    assert words in capsys.readouterr().err
    assert not (workspace / "runs").exists()


def test_a_port_that_is_taken_is_refused(workspace, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["federate", "--config", str(RECIPE), "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_a_second_federation_does_not_mix_with_the_first(workspace):
    raw = yaml.safe_load(RECIPE.read_text())
    server, clients = write_folders(workspace / "run", raw, Settings(2, 1))
    sites = [yaml.safe_load((c / "config.yaml").read_text())["defences"]["key_lock"] for c in clients]
    assert [s["site"] for s in sites] == ["client-0", "client-1"] and sites[0]["key"] != sites[1]["key"]
    assert all(str(c / "private") in s["key"] for c, s in zip(clients, sites, strict=True))
    assert "vault:" not in (server / "config.yaml").read_text()
    assert [(c / "private").stat().st_mode & 0o777 for c in clients] == [0o700, 0o700]
    parts = [
        yaml.safe_load((c / "config.yaml").read_text())["data"]["init_args"]["inner"]["init_args"] for c in clients
    ]
    assert [(p["part"], p["parts"]) for p in parts] == [(0, 2), (1, 2)]
    with pytest.raises(InputError, match="holds a federation already"):
        write_folders(workspace / "run", raw, Settings(2, 1))


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print('up', flush=True)
time.sleep(600)
"""


def interrupted(processes, workspace):
    processes.start("one", [sys.executable, "-c", PARENT], workspace / "log", {**os.environ, "MARK": str(workspace)})
    until = time.monotonic() + 60
    while processes.last_words("one") != "up" and time.monotonic() < until:
        time.sleep(0.05)
    assert len(left_over(workspace)) == 2
    os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
    time.sleep(60)


def test_processes_and_what_they_started_end_together(workspace):
    with pytest.raises(KeyboardInterrupt), Processes() as processes:
        interrupted(processes, workspace)
    assert left_over(workspace) == []
    assert processes.ended("one") == -signal.SIGTERM


class Recorder:
    """Stands between clients and server, and keeps every byte that passes.

    Args:
        port: Where the server listens.
    """

    def __init__(self, port):
        self.port, self.to_server, self.threads = port, bytearray(), []
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.door.getsockname()[1]}"
        self._run(self._accept)

    def _run(self, function, *args):
        self.threads.append(threading.Thread(target=function, args=args, daemon=True))
        self.threads[-1].start()

    def _accept(self):
        while True:
            try:
                client, _ = self.door.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:  # the federation has ended, and a client asks once more
                client.close()
                continue
            self._run(self._pass, client, server, self.to_server)
            self._run(self._pass, server, client, None)

    def _pass(self, source, target, kept):
        try:
            while piece := source.recv(65536):
                if kept is not None:
                    kept += piece
                target.sendall(piece)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            source.close()

    def close(self):
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        for thread in self.threads:
            thread.join(10)


@pytest.mark.slow
def test_no_byte_that_the_server_receives_over_loopback_holds_a_secret(workspace, monkeypatch):
    from lightning_privacy.cli.federate import _parser, _recipe

    settings = Settings(2, 1)
    _, raw = _recipe(["--config", str(RECIPE), *FEW], settings)
    assert _parser("federate")
    server, clients = write_folders(workspace / "run", raw, settings)
    port = free_port()
    recorder = Recorder(port)
    app = "lightning_privacy.cli.federate_app"
    run_on_loopback(Loopback(server, clients, app, port, through=recorder.address))
    recorder.close()
    received = bytes(recorder.to_server)
    secrets = {f"{c.name}/{n}": v for c in clients for n, v in PrivateState(c / "private").secrets().items()}
    assert sum(n.endswith(("key", "scale_weight", "exp_avg")) for n in secrets) >= 6
    assert find_secrets({"received": received}, secrets) == []
    assert not any(
        form in received for n, v in secrets.items() if v.numel() > 8 and v.unique().numel() > 8 for form in forms(v)
    )
    # the recording is complete: what the server averaged is in it, weighted one half each
    shared = load_file(server / "global.safetensors")
    assert b"network.conv2.weight" in received and b"secret" not in received
    assert len(received) > 2 * sum(v.numel() * 4 for v in shared.values())
    told = json.loads((server / "rounds.json").read_text())["1"]
    assert set(told) == {"0", "1"} and all(0 <= c["val/accuracy"] <= 1 for c in told.values())
    assert [(c / "checkpoints" / "last.ckpt").exists() for c in clients] == [True, True]
    assert find_secrets(clients[0] / "checkpoints", secrets) == [] and find_secrets(server, secrets) == []
    assert left_over(workspace) == []


def forms(values):
    kinds = (torch.float16, torch.float32, torch.float64) if values.is_floating_point() else (values.dtype,)
    return [values.to(kind).contiguous().view(torch.uint8).numpy().tobytes() for kind in kinds]


@pytest.mark.slow
def test_the_command_prints_a_table_and_a_failing_client_ends_it(workspace, capsys):
    common = ["--config", str(RECIPE), *FEW, "--clients", "2", "--rounds", "1"]
    assert run("federate", [*common, "--run_name", "good", "--local", "statistics"]) == 0
    out = capsys.readouterr().out
    assert "round 1: train/loss" in out and "client-1" in out and "accuracy, own key" in out
    # without validation records a client cannot tell how good it is
    fractions = "{member: 0.9, aux_nonmember: 0.0, attack_nonmember: 0.0, val: 0.0, holdout: 0.0}"
    assert main(["federate", *common, "--run_name", "bad", "--data.init_args.fractions", fractions]) == 1
    err = capsys.readouterr().err
    assert "error: client " in err and "no validation data" in err
    assert left_over(workspace) == []


def _default():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background of a shell ignores it


@pytest.mark.slow
def test_an_interrupt_leaves_no_process(workspace):
    command = [
        sys.executable,
        "-m",
        "lightning_privacy.cli",
        "federate",
        "--config",
        str(RECIPE),
        *FEW,
        "--clients",
        "2",
    ]
    environment = {**os.environ, "MARK": str(workspace)}
    process = subprocess.Popen(
        command,
        cwd=workspace,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_default,
    )
    until = time.monotonic() + 240
    while not list(workspace.glob("runs/*/client-*/private/state.safetensors")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.2)
    assert len(left_over(workspace)) > 5
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert left_over(workspace) == []
