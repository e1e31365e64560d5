import pickletools

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.interop import export_target
from lightning_privacy.interop.sacro_network import load_network, network_source
from lightning_privacy.testing.tiny_modules import PlainRegressor

TRAINING = {"epochs": 1, "optimizer": "SGD", "lr": 0.1, "momentum": 0.9}
ARRAYS = ["X_train", "y_train", "X_test", "y_test", "X_train_orig", "y_train_orig", "X_test_orig", "y_test_orig"]
ARRAYS += ["proba_train", "proba_test", "indices_train", "indices_test"]


def array(folder, name):
    return np.load(folder / f"{name}.pkl", allow_pickle=True)


def described(folder):
    return yaml.safe_load((folder / "target.yaml").read_text())


def test_probabilities_alone_leave_and_nothing_else(tmp_path, split, make_classifier):
    module = make_classifier()
    folder = export_target(module, split, tmp_path / "out 1.0")
    assert sorted(file.name for file in folder.iterdir()) == ["proba_test.pkl", "proba_train.pkl", "target.yaml"]
    signals = compute_signals(module, split, ("eval_member", "holdout"), {"logits"})
    for name, role in (("proba_train", "eval_member"), ("proba_test", "holdout")):
        found = array(folder, name)
        assert found.dtype == np.float64 and found.shape == (len(split.indices(role)), 4)
        expected = signals[role].logits[:, 0].double().softmax(1).numpy()
        assert np.array_equal(found, expected)
    target = described(folder)
    assert [key for key in target if key.endswith("_path") and target[key]] == ["proba_train_path", "proba_test_path"]
    assert {f"{name}_path" for name in ARRAYS} <= set(target) and "model_type" not in target
    assert target["dataset_name"] == "ToyImages" and np.isnan(target["generalisation_gap"])


def test_the_role_of_the_members_can_be_chosen(tmp_path, split, make_classifier):
    folder = export_target(make_classifier(), split, tmp_path / "target", members="member")
    assert len(array(folder, "proba_train")) == len(split.indices("member"))


def test_pickles_hold_plain_arrays(tmp_path, split, make_classifier):
    folder = export_target(make_classifier(), split, tmp_path / "target", kind="full", training=TRAINING)
    for file in folder.glob("*.pkl"):
        strings = [argument for _, argument, _ in pickletools.genops(file.read_bytes()) if isinstance(argument, str)]
        assert {text.split(".")[0] for text in strings if text.startswith(("numpy", "torch", "light"))} == {"numpy"}


def test_a_full_target_rebuilds_the_network_from_torch_alone(tmp_path, split, make_classifier):
    module = make_classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folder = export_target(module, split, tmp_path / "target", kind="full", training=TRAINING)
    assert module.training and module.network.dropout.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    source = (folder / "model.py").read_text()
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import", "from"))}
    assert imports == {"torch"} and "lightning" not in source
    space = {}
    exec(source, space)
    network = space["Network"]()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    pictures = array(folder, "X_test")
    assert pictures.dtype == np.float32 and pictures.shape == (12, 3, 8, 8)
    batch = next(iter(split.loader("holdout", 12)))
    assert np.array_equal(pictures, 2 * batch["image"].numpy())  # after what stands before the network
    assert np.array_equal(array(folder, "y_test"), batch["label"].numpy())
    module.eval(), network.eval()
    with torch.no_grad():
        assert torch.allclose(network(torch.from_numpy(pictures)), module.logits(batch), atol=1e-6)
    module.train(), network.train()
    torch.manual_seed(1)
    ours = module.logits(batch)
    torch.manual_seed(1)
    assert torch.allclose(network(torch.from_numpy(pictures)), ours, atol=1e-6)  # dropout and statistics too


def test_a_full_target_is_described(tmp_path, split, make_classifier):
    folder = export_target(make_classifier(), split, tmp_path / "target", kind="full", training=TRAINING)
    target = described(folder)
    named = {"model_type": "PytorchModel", "model_name": "Network", "model_params": {}, "batch_size": 7}
    named |= {"model_path": "model.pt", "model_module_path": "model.py", "train_module_path": "train.py"}
    assert {key: target[key] for key in named} == named and target["train_params"] == TRAINING
    assert len(array(folder, "X_train")) == len(split.indices("member"))
    assert array(folder, "indices_train").tolist() == split.indices("member")
    wrong = {side: array(folder, f"proba_{side}").argmax(1) != array(folder, f"y_{side}") for side in ("train", "test")}
    assert target["generalisation_gap"] == pytest.approx(wrong["test"].mean() - wrong["train"].mean())


def test_the_written_training_learns(tmp_path, split, make_classifier):
    folder = export_target(make_classifier(), split, tmp_path / "target", kind="full", training=TRAINING)
    model, train = {}, {}
    exec((folder / "model.py").read_text(), model)
    exec((folder / "train.py").read_text(), train)
    x, y = (torch.from_numpy(array(folder, f"{name}_train")) for name in "Xy")
    torch.manual_seed(0)
    network = model["Network"]()
    loss = nn.functional.cross_entropy
    before = loss(network.eval()(x), y).item()
    loader = [(x[:9], y[:9]), (x[9:], y[9:])]
    train["train"](network, loader, **{**TRAINING, "epochs": 20})
    assert loss(network(x), y).item() < 0.7 * before and not network.training


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x):
        return self.head(nn.functional.dropout(x.flatten(1), 0.5, self.training))


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 4))

    def forward(self, x):
        return x.flatten(1) @ self.weight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(192, 4), nn.Linear(192, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.first(x.flatten(1)) + self.second(x.flatten(1))


class ByValue(nn.Module):
    """Takes another way for some pictures than for those by which it is recorded."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x):
        scores = self.head(x.flatten(1))
        return scores if x.mean() < 0.75 else -scores


class CountsRecords(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x):
        return self.head(x.reshape(len(x), 192))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 4)

    def forward(self, x):
        tokens = x.mean(1)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Functional, "something else in training"),
        (OwnWeight, "`weight` outside a layer"),
        (Tied, "are one weight"),
        (CountsRecords, "cannot be recorded"),
        (Attention, "MultiheadAttention is none of torch's simple layers"),
    ],
)
def test_a_network_that_would_not_be_the_same_is_refused(tmp_path, split, make_classifier, network, reason):
    module = make_classifier(network())
    with pytest.raises(InputError, match=f'{reason}.*kind="probabilities"'):
        export_target(module, split, tmp_path / "target", kind="full", training=TRAINING)
    assert not (tmp_path / "target").exists()
    export_target(module, split, tmp_path / "target")


def test_a_network_that_branches_by_value_is_found_out(tmp_path, split, make_classifier):
    network = ByValue()
    means = [2 * batch["image"].mean() for role in ("member", "holdout") for batch in split.loader(role)]
    assert min(means) < 0.75 < max(means)
    with pytest.raises(InputError, match="differs"):
        export_target(make_classifier(network), split, tmp_path / "target", kind="full", training=TRAINING)


def test_recording_leaves_the_number_of_records_free():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(x.view(x.shape[0], -1))

    network = Net().eval()
    rebuilt = load_network(network_source(network, torch.rand(2, 3, 2, 2), 3))
    pictures = torch.rand(5, 3, 2, 2)
    assert torch.equal(rebuilt(pictures), network(pictures))


@pytest.mark.parametrize("name", ["happy.1", "my-target", "class", "json"])
def test_a_folder_that_sacro_could_not_import_is_refused(tmp_path, split, make_classifier, name):
    with pytest.raises(InputError, match="call the folder by"):
        export_target(make_classifier(), split, tmp_path / name, kind="full", training=TRAINING)


def test_a_folder_with_files_in_it_is_refused(tmp_path, split, make_classifier):
    (tmp_path / "X_train.pkl").write_text("")
    with pytest.raises(InputError, match="not empty"):
        export_target(make_classifier(), split, tmp_path)


@pytest.mark.parametrize(
    "training",
    [
        None,
        {"epochs": 3},
        {"epochs": 0, "optimizer": "SGD"},
        {"epochs": 2, "optimizer": "Nadamax"},
        {"epochs": 2, "optimizer": "SGD", "learning_rate": 1},
        {"epochs": 2, "optimizer": "Adam", "lr": torch.tensor(0.1)},
    ],
)
def test_a_training_that_sacro_could_not_repeat_is_refused(tmp_path, split, make_classifier, training):
    with pytest.raises(InputError, match='"epochs": 30'):
        export_target(make_classifier(), split, tmp_path / "target", kind="full", training=training)


@pytest.mark.parametrize("kind", ["probabilities", "full"])
def test_what_is_no_classifier_is_told_what_it_lacks(tmp_path, split, kind):
    with pytest.raises(MissingProtocolError, match="logits"):
        export_target(PlainRegressor(), split, tmp_path / "target", kind=kind, training=TRAINING)


def test_an_empty_role_is_refused(tmp_path, split, make_classifier, monkeypatch):
    monkeypatch.setitem(split.roles, "holdout", [])
    with pytest.raises(SplitError, match="holdout"):
        export_target(make_classifier(), split, tmp_path / "target")


@pytest.mark.parametrize("wrong", [{"kind": "all"}, {"members": "val"}])
def test_an_unknown_kind_or_role_is_refused(tmp_path, split, make_classifier, wrong):
    with pytest.raises(InputError, match="kinds are probabilities and full"):
        export_target(make_classifier(), split, tmp_path / "target", **wrong)
