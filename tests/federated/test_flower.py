"""Flower's strategies and Lightning's trainers in one process: what reaches the server, byte by byte."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra `flower`")

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import ServerApp

import lightning_privacy.federated
from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.reporting.metrics_csv import MetricsCSV
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.errors import InputError
from lightning_privacy.federated.deny import LeakRefusedError
from lightning_privacy.federated.flower.client import client_app
from lightning_privacy.federated.flower.mod import ClientFailedError, DefaultDeny
from lightning_privacy.federated.flower.records import ARRAYS, content_of, received_arrays, to_arrays
from lightning_privacy.federated.flower.server import STRATEGIES, Rounds, ServerParts, make_strategy, run_server
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.federated.rounds import train_round
from lightning_privacy.federated.shared import prepare_module, read_shared, shared_names
from lightning_privacy.secrets import KeyVault, find_secrets
from lightning_privacy.testing.tiny_classifier import TinyClassifier


@pytest.fixture
def folders(tmp_path):
    """Two clients' private folders, each with a master key of its own."""
    made = []
    for number in range(2):
        folder = PrivateState(tmp_path / f"client-{number}" / "private").folder
        KeyVault.create(folder / "keys.safetensors").put_master("master")
        made.append(folder)
    return made


@pytest.fixture
def server(parts, tmp_path):
    def made(**options):
        module = parts(tmp_path).module
        given = {"clients": 2, "rounds": 2, "defences": [KeyLock(key_length=64)], "folder": tmp_path / "server"}
        return ServerParts(module, **given | options)

    return made


def apps_of(folders, parts, **options):
    def build_for(number, folder):
        return client_app(lambda _: parts(folder, number), folder, **options)

    return [build_for(number, folder) for number, folder in enumerate(folders)]


def everything_secret(folders):
    return {f"{folder.parent.name}/{n}": v for folder in folders for n, v in PrivateState(folder).secrets().items()}


def forms(values):
    """Return a tensor's bytes as they would lie in any message."""
    return [
        values.to(t).contiguous().view(torch.uint8).numpy().tobytes()
        for t in (torch.float16, torch.float32, torch.float64)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_rounds_average_shared_weights_and_no_secret_reaches_the_server(
    folders, parts, server, strategy, tmp_path, one_process
):
    grid = one_process(apps_of(folders, parts))
    rounds = run_server(server(strategy=strategy, loggers=[MetricsCSV(tmp_path / "m.csv")]), grid)
    assert grid.errors == [] and set(rounds.told) == {1, 2}
    for told in rounds.told.values():
        assert set(told) == {0, 1} and set(told[1]) == {"num-examples", "train/loss", "val/loss", "val/accuracy"}
    assert rounds.told[1][0]["val/loss"] != rounds.told[2][0]["val/loss"]

    secrets = everything_secret(folders)
    looked_for = [
        n for n in secrets if n.endswith(("/key", "scale_weight", "shift_weight", "momentum_buffer", "master"))
    ]
    assert len(looked_for) >= 10
    assert find_secrets({"sent": grid.sent}, secrets) == []
    for name in looked_for:
        value = secrets[name]
        assert not any(form in grid.sent for form in (forms(value) if value.is_floating_point() else [bytes(value)]))
    # the search would have found what was sent
    sent = (tmp_path / "server" / "global.safetensors").exists()
    assert sent and forms(PrivateState(folders[0])._tensors()["secret/network.conv1.1.secret/key"])[1] not in grid.sent
    assert b"network.conv2.weight" in grid.sent and b"secret" not in grid.sent

    run = RunFolder(tmp_path / "server")
    names = {line["name"]: line for line in run.measurements()}
    assert names["client_1/val/accuracy"]["n"] == 8 and names["client_1/val/accuracy"]["step"] == 2
    rows = read_metrics(tmp_path / "m.csv")
    mean = (rounds.told[2][0]["val/loss"] + rounds.told[2][1]["val/loss"]) / 2
    logged = next(float(r["val/loss"]) for r in rows if r["step"] == "2" and r.get("val/loss"))
    assert logged == pytest.approx(mean, rel=1e-6)
    assert json.loads((tmp_path / "server" / "rounds.json").read_text())["2"]["0"]["num-examples"] == 8


def test_the_search_finds_public_weights_in_the_same_bytes(folders, parts, server, one_process):
    shared = []
    private = PrivateState(folders[0])

    def build(_):
        made = parts(folders[0], 0)
        shared.append(made.module)
        return made

    other = client_app(lambda _: parts(folders[1], 1), folders[1])
    grid = one_process([client_app(build, private.folder), other])
    run_server(server(rounds=1), grid)
    weight = shared[0].network.conv2.weight.detach()
    assert forms(weight)[1] in grid.sent and find_secrets({"sent": grid.sent}, {"weight": weight}) != []


def leaking(parts, folder, mods, where):
    """A ClientApp that merges its secrets into what it sends."""
    app = ClientApp()

    @app.train(mods=mods)
    def train(message, context):
        private = PrivateState(folder)
        reply = train_round(parts(folder), received_arrays(message), private, 1)
        secret = private._tensors()["secret/network.conv1.1.secret/key"]
        content = content_of(reply, 0)
        if where == "a key of its own":
            content[ARRAYS] = to_arrays({**reply.arrays, "network.conv1.1.secret.key": secret})
        elif where == "inside a weight":
            arrays = dict(reply.arrays)
            arrays["adapter.weight"] = arrays["adapter.weight"].clone()
            arrays["adapter.weight"][0, : len(secret)] = secret
            content[ARRAYS] = to_arrays(arrays)
        elif where == "a list of numbers":
            content["metrics"] = MetricRecord({"num-examples": 1.0, "train/loss": secret.tolist()})
        elif where == "numbers of other names":
            content["metrics"] = MetricRecord(
                {"num-examples": 1.0, **{f"k{i}": float(v) for i, v in enumerate(secret)}}
            )
        elif where == "other arrays":
            content["more"] = to_arrays({"k": secret})
        elif where == "settings":
            content["more"] = ConfigRecord({"k": secret.numpy().tobytes()})
        elif where == "an exception":
            raise ValueError(f"the key is {secret.tolist()}")
        return Message(content, reply_to=message)

    return app


WHERE = [
    "a key of its own",
    "inside a weight",
    "a list of numbers",
    "numbers of other names",
    "other arrays",
    "settings",
    "an exception",
]


def ask(one_process, app, sent):
    grid = one_process([app])
    content = RecordDict({ARRAYS: to_arrays(sent), "config": ConfigRecord({"server-round": 1, "rounds": 1})})
    reply = grid.send_and_receive([Message(content, 1, "train")])[0]
    return grid, reply


@pytest.mark.parametrize("where", WHERE)
def test_a_leaking_client_is_caught_by_the_scanner_and_refused_by_the_mod(folders, parts, server, where, one_process):
    folder = folders[0]
    made = server()
    prepare_module(made.module, made.defences)
    sent = read_shared(made.module, shared_names(made.module))
    open_, _ = ask(one_process, leaking(parts, folder, [], where), sent)
    key = {"key": PrivateState(folder)._tensors()["secret/network.conv1.1.secret/key"]}
    # One by one between names, numbers are no run that a scanner knows: it is their names that are refused.
    assert (find_secrets({"sent": open_.sent}, key) != []) == (where != "numbers of other names")

    deny = DefaultDeny(folder, {"num-examples", "client", "train/loss"})
    closed, reply = ask(one_process, leaking(parts, folder, [deny], where), sent)
    assert reply.has_error() and isinstance(closed.errors[0], ClientFailedError)
    assert find_secrets({"sent": closed.sent}, key) == [] and b"k3" not in closed.sent
    assert ("LeakRefusedError" in str(closed.errors[0])) == (where != "an exception")
    assert where == "an exception" or "refused to send" in (folder / "error.txt").read_text()
    assert (folder / "error.txt").stat().st_mode & 0o077 == 0


def test_the_mod_stands_around_other_mods_and_works_with_local_dp(folders, parts, server, one_process):
    noisy = LocalDpMod(clipping_norm=1.0, sensitivity=1e-6, epsilon=10.0, delta=1e-5)
    grid = one_process(apps_of(folders, parts, mods=[noisy]))
    run_server(server(rounds=1), grid)
    assert grid.errors == []

    def adds(message, context, call_next):
        reply = call_next(message, context)
        reply.content["extra"] = to_arrays({"k": torch.ones(3)})
        return reply

    grid = one_process(apps_of(folders, parts, mods=[adds]))
    with pytest.raises(InputError):
        run_server(server(rounds=1), grid)
    assert all("LeakRefusedError" in str(e) for e in grid.errors)


def test_a_malicious_server_that_asks_for_the_lock_gets_nothing(folders, parts, server, one_process):
    grid = one_process(apps_of(folders, parts))
    asks = {"network.conv1.1.secret.key": torch.zeros(64), "network.conv1.1.secret.scale_weight": torch.zeros(4, 64)}
    strategy = make_strategy("FedAvg", Rounds(2))
    strategy.start(grid, to_arrays(asks), num_rounds=1)
    assert len(grid.errors) == 4 and all("sends nothing" in str(e) for e in grid.errors)
    assert find_secrets({"sent": grid.sent}, everything_secret(folders)) == []
    assert "does not share" in (folders[0] / "error.txt").read_text()


def test_a_client_that_fails_ends_the_run(folders, parts, server, tmp_path, one_process):
    def fails(_):
        raise LeakRefusedError("not today")

    grid = one_process([apps_of(folders, parts)[0], client_app(fails, folders[1])])
    with pytest.raises(InputError, match="Only 1 of 2 clients answered in round 1"):
        run_server(server(), grid)
    assert (folders[1] / "error.txt").read_text().startswith("not today")
    assert not (tmp_path / "server").exists()
    with pytest.raises(InputError, match="no strategy 'FedProx'"):
        make_strategy("FedProx", Rounds(2))


def test_a_message_without_a_round_is_refused(folders, parts, one_process):
    app = apps_of(folders, parts)[0]
    grid = one_process([app])
    message = Message(RecordDict({ARRAYS: to_arrays({"a": torch.ones(1)})}), 1, "train")
    assert grid.send_and_receive([message])[0].has_error()
    assert "tells no round" in (folders[0] / "error.txt").read_text()


def test_the_readmes_app_is_one(monkeypatch, parts, tmp_path):
    page = Path(lightning_privacy.federated.__file__).with_name("README.md").read_text()
    block = page.split("```py\n")[1].split("```")[0]
    names = {"MyModule": TinyClassifier, "MyDataModule": lambda: parts(tmp_path).datamodule}
    exec(block, names)
    assert isinstance(names["client"], ClientApp) and isinstance(names["server"], ServerApp)
    asked = names["build_client"](None), names["build_server"](None)
    assert asked[0].local == asked[1].local == "statistics"
    assert asked[0].defences[0].key_length == asked[1].defences[0].key_length
