"""A checkpoint that was trained elsewhere, described by a configuration."""

import lightning.pytorch as L
import pytest
import torch
import yaml
from safetensors.torch import save_file

from lightning_privacy.cli.main import main
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.datamodules import Digits
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.report.dossier import load_dossier

ROLES = {"member": list(range(120)), "attack_nonmember": list(range(120, 180)), "holdout": list(range(180, 300))}
NETWORK = {"network": "small_cnn", "classes": 10, "channels": 1, "image_size": 8}
ATTACK = {"attacks": ["averaged_loss", "scaled_confidence"], "bootstrap": 20}


@pytest.fixture(scope="module")
def network():
    """A network that memorised its members, trained by a plain loop."""
    torch.manual_seed(0)
    module = ImageClassifier(**NETWORK)
    module.configure_model()
    data = Digits()
    data.prepare_data()
    data.setup("fit")
    pool = data.train_dataloader().dataset
    x, y = (torch.stack([torch.as_tensor(pool[i][key]) for i in ROLES["member"]]) for key in ("image", "label"))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture
def audit_of(tmp_path, monkeypatch):
    """Write AUDIT.yaml and audit it; return the exit code."""
    monkeypatch.chdir(tmp_path)

    def _audit(path, *options, **changes):
        content = {
            "run_name": "theirs",
            "ckpt_path": str(path),
            "model": {"class_path": "ImageClassifier", "init_args": NETWORK},
            "data": {
                "class_path": "MembershipSplit",
                "init_args": {"inner": {"class_path": "Digits"}, "roles": ROLES, "record_id": None},
            },
            "audits": {"membership": ATTACK},
            **changes,
        }
        (tmp_path / "AUDIT.yaml").write_text(yaml.safe_dump(content))
        return main(["audit", "--config", "AUDIT.yaml", *options])

    return _audit


def _wrapped(state):
    return {f"module.{name}": value for name, value in state.items()}


def _saved(kind, module, folder):
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    state = module.state_dict()
    if kind == "safetensors":
        save_file(_wrapped(state), path)
    elif kind == "bare":
        torch.save({name.removeprefix("network."): value for name, value in state.items()}, path)
    else:
        torch.save({"model": state, "epoch": 3, "args": {"lr": 0.1}}, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "bare", "nested"])
def test_weights_of_a_plain_training_loop_are_attacked(kind, network, audit_of, tmp_path, capsys):
    assert audit_of(_saved(kind, network, tmp_path)) == 0, capsys.readouterr().err
    found = {r.attack: r for r in RunFolder("runs/theirs").results()}
    assert set(found) == set(ATTACK["attacks"])
    assert found["averaged_loss"].metrics["auroc"].value > 0.55
    assert all(any("what the configuration claims" in note for note in r.notes) for r in found.values())
    assert "averaged_loss" in capsys.readouterr().out


def test_the_folder_is_a_run_with_a_dossier_that_names_the_file(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    assert audit_of(path) == 0, capsys.readouterr().err
    assert main(["audit", "runs/theirs"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["audit", "runs/theirs", "--again", "--audits.membership.attacks=[modified_entropy]"]) == 0
    new = {r.attack: r for r in RunFolder("runs/theirs").results()}["modified_entropy"]
    assert any("what the configuration claims" in note for note in new.notes)
    assert main(["dossier", "runs/theirs"]) == 0
    dossier = load_dossier("runs/theirs/dossier/dossier.json")
    assert dossier.subject.checkpoint.path == "weights.pt"
    assert str(tmp_path) not in dossier.model_dump_json()
    assert "was trained elsewhere" in dossier.model_dump_json()


def test_a_lightning_checkpoint_without_our_split_is_attacked_at_its_step(audit_of, tmp_path, capsys):
    module = ImageClassifier(**NETWORK)
    trainer = L.Trainer(max_epochs=2, logger=False, accelerator="cpu", enable_progress_bar=False, limit_train_batches=2)
    trainer.fit(module, Digits())
    trainer.save_checkpoint(tmp_path / "theirs.ckpt", weights_only=True)
    assert audit_of(tmp_path / "theirs.ckpt") == 0, capsys.readouterr().err
    assert {r.step for r in RunFolder("runs/theirs").results()} == {4}


def test_shadow_models_need_to_know_how_long_to_train(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    shadows = {"membership": {**ATTACK, "attacks": ["lira_offline_fixed"], "shadows": 2}}
    assert audit_of(path, audits=shadows) == 1
    assert "--trainer.max_epochs" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert audit_of(path, "--trainer.max_epochs", "1", audits=shadows) == 0, capsys.readouterr().err
    assert [r.attack for r in RunFolder("runs/theirs").results()] == ["lira_offline_fixed"]


def _pickled(folder):
    torch.save({"state_dict": {}, "callback": print}, folder / "x.pt")


def _cut(folder):
    (folder / "x.pt").write_bytes(b"PK\x03\x04 cut")


def _other_names(folder):
    torch.save({"conv.weight": torch.zeros(3)}, folder / "x.pt")


def _no_dict(folder):
    torch.save(torch.zeros(3), folder / "x.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickled, "run code"),
        (_cut, "no checkpoint that PyTorch can read"),
        (_other_names, "are not those of ImageClassifier"),
        (_no_dict, "holds a Tensor"),
        (lambda folder: None, "There is no checkpoint"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused_and_nothing_is_written(spoil, message, audit_of, tmp_path, capsys):
    spoil(tmp_path)
    assert audit_of(tmp_path / "x.pt") == 1
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1
    assert not (tmp_path / "runs").exists()


def test_another_shape_is_named(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    assert audit_of(path, "--model.classes", "11") == 1
    assert "has shape (10," in capsys.readouterr().err


def test_a_class_that_cannot_be_imported_is_a_usage_error(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        audit_of(path, model={"class_path": "theirs.Net"})
    assert "`theirs.Net` cannot be imported" in capsys.readouterr().err


def test_results_about_other_weights_are_not_mixed(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    assert audit_of(path) == 0, capsys.readouterr().err
    torch.save({n: v + 1 for n, v in torch.load(path, weights_only=True).items()}, path)
    assert audit_of(path) == 1
    assert "holds the audit of other weights" in capsys.readouterr().err
    assert main(["audit", "runs/theirs", "--again"]) == 1
    assert "holds other weights now" in capsys.readouterr().err


def test_a_run_that_was_trained_in_the_folder_is_left_alone(network, audit_of, tmp_path, capsys):
    path = _saved("bare", network, tmp_path)
    (tmp_path / "runs" / "theirs").mkdir(parents=True)
    (tmp_path / "runs" / "theirs" / "config.yaml").write_text("{}\n")
    assert audit_of(path) == 1
    assert "holds a run that was trained there" in capsys.readouterr().err


def test_members_and_outsiders_that_overlap_are_refused(network, audit_of, tmp_path, capsys):
    overlapping = {**ROLES, "holdout": list(range(100, 300))}
    data = {"class_path": "MembershipSplit", "init_args": {"inner": {"class_path": "Digits"}, "roles": overlapping}}
    assert audit_of(_saved("bare", network, tmp_path), data=data) == 1
    assert "member" in capsys.readouterr().err and not (tmp_path / "runs").exists()
