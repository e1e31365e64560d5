"""Shadow models through the command line: trained in shares, found again after a kill, and told apart by what made them."""

import shutil

import pytest
import torch

from lightning_privacy import resources
from lightning_privacy.cli.main import main
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.dossier import content_hash, load_dossier
from lightning_privacy.shadows import pool

RECIPE = str(resources.recipes_folder() / "audit_faces_classifier.yaml")
SMALL = (
    *("--data.inner.people", "1-10", "--data.inner.size", "8", "--model.image_size", "8", "--trainer.max_epochs", "2"),
    *("--trainer.logger", "false", "--audits.membership.bootstrap", "20"),
)
SHADOWS = ("--audits.membership.shadows", "4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run that was not audited."""
    folder = tmp_path_factory.mktemp("trained")
    options = (*SMALL, "--audits.membership", "null", "--run_dir", str(folder / "run"))
    assert main(["fit", "--config", RECIPE, *options]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, called ``run`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return RunFolder("run")


def audit(*options):
    return main(["audit", "run", "--audits.membership={}", "--audits.membership.bootstrap", "20", *SHADOWS, *options])


def weights():
    return {path.name: path.stat().st_mtime_ns for path in RunFolder("run").path.glob("shadows/*.safetensors")}


def test_shares_of_a_job_array_are_all_that_the_audit_needs(run, capsys):
    for share, there in (("0/2", 2), ("1/2", 4)):
        assert audit("--shadows-only", share) == 0, capsys.readouterr().err
        assert len(weights()) == there and run.results() == []
    made = weights()
    assert audit() == 0, capsys.readouterr().err
    assert {name: weights()[name] for name in made} == made  # none was trained again
    found = {r.attack: r for r in run.results()}
    assert {"lira_online", "lira_offline", "rmia_online", "averaged_loss"} <= set(found)
    assert found["lira_online"].extra["shadows"] == 4


def test_an_audit_that_was_killed_ends_as_if_it_had_not_been(run, trained, tmp_path, monkeypatch, capsys):
    assert audit() == 0, capsys.readouterr().err
    assert main(["dossier", "run"]) == 0
    whole = content_hash(load_dossier("run/dossier/dossier.json"))
    secret = (run.path / "dossier_secret").read_bytes()
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    shutil.copytree(trained, "run")
    RunFolder("run").path.joinpath("dossier_secret").write_bytes(secret)  # salts the records' names
    write, written = pool.write_tensors, []

    def killed_at_the_third(*args, **options):
        if len(written) == 2:
            raise OSError("the power went off")
        written.append(args[0])
        write(*args, **options)

    monkeypatch.setattr(pool, "write_tensors", killed_at_the_third)
    with pytest.raises(OSError, match="power"):
        audit()
    monkeypatch.setattr(pool, "write_tensors", write)
    assert RunFolder("run").results() == []
    assert audit() == 0, capsys.readouterr().err
    assert main(["dossier", "run"]) == 0
    assert content_hash(load_dossier("run/dossier/dossier.json")) == whole


def test_an_audit_in_the_last_epoch_does_not_stand_for_the_one_with_shadows(tmp_path):
    options = (*SMALL, *SHADOWS, "--audits.membership.every_n_epochs", "2", "--run_dir", str(tmp_path / "run"))
    assert main(["fit", "--config", RECIPE, *options]) == 0
    found = {r.attack: r.epoch for r in RunFolder(tmp_path / "run").results()}
    assert found["averaged_loss"] == found["lira_online"] == 2


def test_an_audit_finds_the_shadow_models_of_the_training_wherever_its_records_lie_and_however_they_are_read(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = (*SMALL, *SHADOWS, "--audits.membership.queries", "1")
    assert main(["fit", "--config", RECIPE, *options, "--run_dir", "run"]) == 0
    made = weights()
    assert len(made) == 2 * 4  # weights, and what they say of the records
    shutil.move("run", "moved")
    again = ("--again", "--data.inner.num_workers", "1", "--audits.membership.bootstrap", "20")
    monkeypatch.setattr(pool, "train_one", None)
    monkeypatch.setattr(pool, "train_stacked", None)
    assert main(["audit", "moved", *again]) == 0, capsys.readouterr().err
    assert {path.name for path in RunFolder("moved").path.glob("shadows/*.safetensors")} == set(made)


def test_models_of_another_recipe_are_not_taken(run, capsys):
    assert audit("--shadows-only", "0/1") == 0
    before = weights()
    assert audit("--shadows-only", "0/1", "--model.optimizer.lr", "0.01") == 0, capsys.readouterr().err
    assert len(weights()) == 2 * len(before)


def test_a_shadow_is_trained_like_the_target(run, trained):
    """The target's own records as members give the target's own weights: nothing of the recipe is lost on the way."""
    from lightning_privacy.cli.privacy_cli import PrivacyCLI
    from lightning_privacy.testing.fitting import fit

    config = ["--config", "run/config.yaml", "--run_dir", "other", *SHADOWS, "--audits.membership.bootstrap", "20"]
    cli = PrivacyCLI([*config], run=False)
    module, defences = cli.audits["membership"].shadow_build(0)
    assert defences == [] and module is not cli.model
    fitted = fit("elsewhere", module, cli.datamodule, max_epochs=2)
    saved = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(fitted.weights[name], value) for name, value in saved.items())


@pytest.mark.parametrize("share", ["2/2", "1", "a/b", "-1/2"])
def test_a_share_that_is_none_is_a_usage_error(run, share, capsys):
    with pytest.raises(SystemExit) as leaving:
        audit(f"--shadows-only={share}")
    assert leaving.value.code == 2
    assert "is no share such as 0/16" in capsys.readouterr().err


def test_an_odd_number_of_shadows_is_refused(run, capsys):
    assert main(["audit", "run", "--audits.membership.shadows", "3"]) == 1
    assert "come in pairs" in capsys.readouterr().err
    assert not (run.path / "shadows").exists()
