"""A client's part of a round: what it trains, what it shares, and what it keeps."""

import stat
from itertools import chain

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.key_lock.callback import KeyLock
from lightning_privacy.callbacks.key_lock.private_affine import PrivateAffine
from lightning_privacy.callbacks.key_lock.start import locks_of
from lightning_privacy.errors import InputError, NonFiniteLossError
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.federated.rounds import ClientParts, evaluate_round, train_round
from lightning_privacy.federated.shared import (
    load_shared,
    local_names,
    prepare_module,
    read_shared,
    shared_names,
)
from lightning_privacy.secrets import KeyVault, find_secrets


@pytest.fixture
def first(parts, private):
    """What the server sends first."""
    module = parts(private.folder).module
    prepare_module(module, [KeyLock(key_length=64)])
    return read_shared(module, shared_names(module))


def test_a_round_moves_shared_weights_and_the_lock_and_shares_only_the_former(parts, private, first):
    reply = train_round(parts(private.folder), first, private, 1)
    assert set(reply.arrays) == set(first) and not any("secret" in name for name in first)
    assert any(not torch.equal(first[n], reply.arrays[n]) for n in first)
    assert reply.metrics["num-examples"] == 8 and reply.metrics["train/loss"] > 0
    secrets = private.secrets()
    assert any("scale_weight" in name for name in secrets) and any(n.startswith("keys/") for n in secrets)
    assert find_secrets(dict(reply.arrays), secrets) == []


def test_the_lock_and_its_momentum_go_on_and_the_public_momentum_does_not(parts, private, first):
    train_round(parts(private.folder), first, private, 1)
    kept = {n: v for n, v in private.secrets().items() if "scale_weight" in n and n.startswith("state/")}
    lock, momentum = (next(v for n, v in kept.items() if word in n) for word in ("state/secret/", "state/optimizer/"))
    assert bool(momentum.any())
    assert not any("head" in n for n in private.secrets())
    later = parts(private.folder)
    seen = {}

    class Look(torch.nn.Identity):
        pass

    from lightning.pytorch import Callback

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            layer = next(iter(locks_of(pl_module).values()))
            state = trainer.optimizers[0].state
            seen["lock"] = layer.secret.scale_weight.detach().clone()
            seen["momentum"] = state[layer.secret.scale_weight]["momentum_buffer"].clone()
            seen["public"] = [p for n, p in pl_module.named_parameters() if "secret" not in n and p in state]
            seen["epoch"] = trainer.current_epoch

    later.defences = [*later.defences, Watch()]
    train_round(later, first, private, 2)
    assert torch.equal(seen["lock"], lock) and torch.equal(seen["momentum"], momentum)
    assert seen["public"] == [] and seen["epoch"] == 1
    assert private.round() == 2


def test_rounds_do_not_repeat_the_first_epochs_order(parts, private, first):
    from lightning.pytorch import Callback

    orders = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            orders.append(batch["record"].tolist())

    for number in (1, 2):
        mine = parts(private.folder)
        mine.defences = [*mine.defences, Watch()]
        train_round(mine, first, private, number)
    assert len(orders) == 4 and orders[:2] != orders[2:]
    assert sorted(chain(*orders[:2])) == sorted(chain(*orders[2:]))


def test_evaluation_uses_the_clients_own_lock_and_changes_nothing(parts, private, first):
    reply = train_round(parts(private.folder), first, private, 1)
    before = (private.folder / "state.safetensors").read_bytes()
    mine = parts(private.folder)
    own = evaluate_round(mine, reply.arrays, private, 1)
    assert own.arrays == {} and set(own.metrics) == {"num-examples", "val/loss", "val/accuracy"}
    assert own.metrics["num-examples"] == 8
    assert (private.folder / "state.safetensors").read_bytes() == before
    layer = next(iter(locks_of(mine.module).values()))
    kept = next(v for n, v in private.secrets().items() if n.startswith("state/secret/") and n.endswith("scale_weight"))
    assert torch.equal(layer.secret.scale_weight, kept)
    # another client's lock makes another model of the same shared weights
    other = PrivateState(private.folder.parent / "other")
    KeyVault.create(other.folder / "keys.safetensors").put_master("master")
    theirs = evaluate_round(parts(other.folder), reply.arrays, other, 1)
    assert theirs.metrics["val/loss"] != own.metrics["val/loss"]


def test_the_last_model_is_saved_without_its_secrets(parts, private, first, tmp_path):
    reply = train_round(parts(private.folder), first, private, 1)
    place = tmp_path / "run" / "last.ckpt"
    evaluate_round(parts(private.folder), reply.arrays, private, 1, place)
    assert find_secrets(place, private.secrets()) == []
    from lightning_privacy.core.manifest import load_defended

    loaded = load_defended(parts(private.folder).module, place, vault=KeyVault(private.folder / "keys.safetensors"))
    layer = next(iter(locks_of(loaded).values()))
    kept = next(v for n, v in private.secrets().items() if n.startswith("state/secret/") and n.endswith("scale_weight"))
    assert not layer.is_locked and torch.equal(layer.secret.scale_weight, kept)


def test_files_are_the_clients_alone(parts, private, first):
    train_round(parts(private.folder), first, private, 1)
    assert stat.S_IMODE(private.folder.stat().st_mode) == 0o700
    files = [f for f in private.folder.rglob("*") if f.is_file()]
    assert len(files) == 2 and all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)
    private.folder.chmod(0o755)
    with pytest.raises(InputError, match="chmod 700"):
        PrivateState(private.folder)


@pytest.mark.parametrize("local", ["statistics", "norms"])
def test_local_norms_stay_and_go_on(parts, private, local):
    made = parts(private.folder, defences=[PrivateAffine()], local=local)
    prepare_module(made.module, made.defences)
    names = shared_names(made.module, local)
    kept = local_names(made.module, local)
    assert kept and not set(kept) & set(names) and all("running" in n or "num_batches" in n for n in kept)
    first = read_shared(made.module, names)
    train_round(parts(private.folder, defences=[PrivateAffine()], local=local), first, private, 1)
    mine = parts(private.folder, defences=[PrivateAffine()], local=local)
    evaluate_round(mine, first, private, 1)
    count = next(n for n in kept if n.endswith("num_batches_tracked"))
    assert int(mine.module.state_dict()[count]) == 2  # batches of the first round


def test_fedbn_keeps_the_affine_part_of_every_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.LayerNorm(2)))
    assert local_names(net, "norms") == [f"1.{n}" for n in list(nn.BatchNorm2d(4).state_dict())] + [
        "2.0.weight",
        "2.0.bias",
    ]
    assert local_names(net, ["0.bias"]) == ["0.bias"]
    with pytest.raises(InputError, match="no normalisation layer"):
        local_names(nn.Linear(2, 2), "norms")
    with pytest.raises(InputError, match="does not have"):
        local_names(net, ["nine"])
    with pytest.raises(InputError, match="Nothing of this"):
        shared_names(nn.Sequential(nn.BatchNorm2d(4)), "norms")


def test_a_server_that_asks_for_more_or_less_gets_nothing(parts, private, first):
    lock = "network.conv1.1.secret.scale_weight"
    for sent, words in (
        (first | {lock: torch.zeros(4, 64)}, "does not share: " + lock),
        (dict(list(first.items())[1:]), "did not send"),
        (first | {"scores_x": torch.zeros(1)}, "does not share"),
    ):
        with pytest.raises(InputError, match=words):
            train_round(parts(private.folder), sent, private, 1)
    assert not private.file.exists()
    module = nn.Linear(2, 2)
    with pytest.raises(InputError, match="of shape"):
        load_shared(module, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, ["weight", "bias"])


def test_a_loss_that_is_no_number_is_not_sent(parts, private, first):
    bad = {n: v * float("nan") if v.is_floating_point() else v for n, v in first.items()}
    with pytest.raises(NonFiniteLossError, match="Nothing was sent"):
        train_round(parts(private.folder), bad, private, 1)
    assert not private.file.exists()


def test_the_state_of_another_model_is_refused(parts, private, first):
    train_round(parts(private.folder), first, private, 1)
    with pytest.raises(InputError, match="of another model"):
        private.restore(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"logs no val/fid"):
        evaluate_round(parts(private.folder, metrics=("val/fid",)), first, private, 1)


def on_ranks(folder, first, ranks):
    """Train one round, alone or on each of two ranks; return what is sent."""
    from lightning_privacy.testing.fitting import quiet
    from lightning_privacy.testing.settings import plain_images
    from lightning_privacy.testing.tiny_classifier import TinyClassifier

    module = TinyClassifier()
    module.scores = nn.LayerNorm(4)
    how = {"strategy": "ddp", "devices": 2} if ranks == 2 else {}
    lock = KeyLock(key=f"vault:{folder}/keys.safetensors#master", key_length=16)
    data = plain_images(8 // ranks)
    made = ClientParts(module, data, [lock], {"accelerator": "cpu", "max_epochs": 2, **how})
    with quiet():
        reply = train_round(made, first, PrivateState(folder), 1)
    return dict(reply.arrays), dict(reply.metrics)


@pytest.mark.dist
def test_a_client_on_two_ranks_sends_what_it_sends_alone(tmp_path, rank_pool):
    from lightning_privacy.testing.fitting import compare
    from lightning_privacy.testing.tiny_classifier import TinyClassifier

    module = TinyClassifier()
    module.scores = nn.LayerNorm(4)
    prepare_module(module, [KeyLock(key_length=16)])
    first = read_shared(module, shared_names(module))
    folders = [PrivateState(tmp_path / name).folder for name in ("alone", "both")]
    KeyVault.create(folders[0] / "keys.safetensors").put_master("master")
    (folders[1] / "keys.safetensors").write_bytes((folders[0] / "keys.safetensors").read_bytes())
    (folders[1] / "keys.safetensors").chmod(0o600)
    here, there = rank_pool.run(on_ranks, str(folders[1]), first, 2)
    alone = on_ranks(str(folders[0]), first, 1)
    assert compare(here, there) == [] and compare(here[0], alone[0], tolerance=1e-5) == []
    assert here[1] == pytest.approx(alone[1], rel=1e-5)
    kept = [PrivateState(folder).secrets() for folder in folders]
    assert compare(*kept, tolerance=1e-4) == []


def test_a_round_starts_no_processes_of_its_own(parts, private, first):
    made = parts(private.folder)
    made.trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    with pytest.raises(InputError, match="answer the same message"):
        train_round(made, first, private, 1)
