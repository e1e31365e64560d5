"""The verbs of LightningCLI, the groups of defences and audits, and the folder of a run."""

import sys

import pytest
import torch
import yaml

from lightning_privacy.core.run_folder import RunFolder, read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def test_fit_makes_a_run(run, recipe, workspace):
    code, out, err = run("fit", "--config", recipe)
    assert code == 0, err
    folder = RunFolder.open(workspace / "runs" / "toy")
    assert {p.name for p in folder.path.iterdir()} == {
        "config.yaml", "split.json", "checkpoints", "metrics.csv", "results.jsonl", "measurements.jsonl",
    }  # fmt: skip
    assert folder.last_checkpoint().name == "last.ckpt"
    assert any(p.name.startswith("best-") for p in folder.checkpoints.iterdir())
    assert [r.step for r in folder.results()] == [2, 4]
    assert torch.load(folder.last_checkpoint(), weights_only=True)["global_step"] == 4
    assert "seconds_per_step" in {m["name"] for m in folder.measurements()}
    assert [r["step"] for r in read_metrics(folder.metrics) if r["train/loss"]] == ["0", "1", "2", "3"]
    assert "trained 4 steps" in out  # no terminal here: plain lines


def test_the_kept_configuration_reads_like_a_recipe_and_runs(run, recipe, workspace):
    run("fit", "--config", recipe, "--defences.louder.factor", "5")
    kept = workspace / "runs/toy/config.yaml"
    raw = yaml.safe_load(kept.read_text())
    assert raw["defences"] == {"louder": {"factor": 5.0, "tone": "high"}}
    assert raw["audits"] == {"coin": {"value": 0.5}}
    assert raw["seed_everything"] == 0
    assert "default_root_dir" in raw["trainer"] and raw["trainer"]["default_root_dir"] is None
    code, _, err = run("fit", "--config", str(kept), "--run_name", "again")
    assert code == 0, err
    one, other = (yaml.safe_load((workspace / "runs" / n / "config.yaml").read_text()) for n in ("toy", "again"))
    assert {k: v for k, v in one.items() if k != "run_name"} == {k: v for k, v in other.items() if k != "run_name"}


def test_requeue_keeps_the_configuration_and_continues(run, recipe, workspace):
    assert run("fit", "--config", recipe, "--trainer.max_epochs", "1", "--ckpt_path", "last")[0] == 0
    code, _, err = run("fit", "--config", recipe, "--trainer.max_epochs", "1", "--ckpt_path", "last")
    assert code == 0, err
    folder = RunFolder(workspace / "runs" / "toy")
    assert [p.name for p in folder.configs()] == ["config.yaml"]
    code, _, err = run("fit", "--config", recipe, "--ckpt_path", "last")  # two epochs: another configuration
    assert code == 0, err
    assert [p.name for p in folder.configs()] == ["config.yaml", "config-2.yaml"]
    assert [r["step"] for r in read_metrics(folder.metrics) if r["train/loss"]] == ["0", "1", "2", "3"]


def built(cli_args):
    from lightning_privacy.cli.privacy_cli import PrivacyCLI

    return PrivacyCLI(cli_args, run=False, trainer_overrides={"logger": False, "accelerator": "cpu"})


def test_configurations_merge(write, recipe):
    other = write("other.yaml", {"defences": {"dirty": {}, "louder": {"tone": "low"}}})
    defences = built(["--config", recipe, "--config", other]).defences
    assert list(defences) == ["louder", "dirty"]
    assert defences["louder"].init_args == {"factor": 3.0, "tone": "low"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {"louder": 3.0}),
        (["--defences.louder.factor", "0.1"], {"louder": 0.1}),
        (["--defences.louder", "null"], {}),
        (["--defences.louder", "null", "--defences.louder.factor", "0.2"], {"louder": 0.2}),
        (["--defences.louder={}"], {"louder": 3.0}),
    ],
)
def test_defences_are_overridden_and_removed_by_name(recipe, args, expected):
    assert {n: d.factor for n, d in built(["--config", recipe, *args]).defences.items()} == expected


def test_our_classes_need_no_path_and_nested_ones_are_reached(recipe):
    cli = built(["--config", recipe, "--data.inner.n", "12", "--model.slope", "4"])
    assert (type(cli.datamodule.inner).__name__, cli.datamodule.inner.n, cli.model.slope) == ("Points", 12, 4.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--defences.louder.facter", "3"], r"no option `defences.louder.facter` of Louder. Did you mean `factor`"),
        (["--defences.luder.factor", "3"], r"no option `defences.luder.factor`. Did you mean `defences.louder`"),
        (["--trainer.max_epoch", "3"], r"no option `trainer.max_epoch`. Did you mean `trainer.max_epochs`"),
        (["--model.slop", "3"], r"no option `model.slop` of Line. Did you mean `slope`"),
        (["--audits.coin.x", "3"], r"no option `audits.coin.x` of CoinAudit. It has: value"),
        (["--nonsense", "3"], r"no option `nonsense`"),
    ],
)
def test_a_misspelt_option_is_refused_with_its_path(run, recipe, workspace, args, message):
    import re

    code, _, err = run("fit", "--config", recipe, *args)
    assert code == 2
    assert re.search(message, err), err
    assert len(err.splitlines()) == 2, err
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"trainer": {"max_epochz": 3}}, "trainer.max_epochz"),
        ({"defences": {"louder": {"facter": 3}}}, "defences.louder.facter"),
        ({"defences": {"lauder": {"factor": 3}}}, "defences.lauder"),
        ({"model": {"class_path": "Line", "init_args": {"slop": 1}}}, "model.slop"),
        ({"data": {"class_path": "Wrapped", "init_args": {"inner": {"class_path": "Points", "init_args": {"m": 1}}}}},
         "data.inner.m"),
        ({"defenses": {"louder": {}}}, "defenses"),
        ({"defences": {"lauder": {}}}, "defences.lauder"),
        ({"defences": {"lauder": None}}, "defences.lauder"),
    ],
)  # fmt: skip
def test_a_misspelt_key_in_a_file_is_refused_with_its_path(run, write, recipe, change, path):
    code, _, err = run("fit", "--config", recipe, "--config", write("more.yaml", change))
    assert code == 2
    assert f"`{path}" in err, err


def test_wrong_type_and_unknown_class_are_refused(run, recipe):
    code, _, err = run("fit", "--config", recipe, "--defences.louder.factor", "loud")
    assert code == 2 and "defences.louder" in err and "loud" in err
    code, _, err = run("fit", "--config", recipe, "--model", "NoSuchModel")
    assert code == 2 and "NoSuchModel" in err


def test_a_refusal_is_one_line_and_leaves_nothing(run, recipe, workspace, monkeypatch):
    code, _, err = run("fit", "--config", recipe, "--model.missing", "true")
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        "error: The weights are missing from nowhere/; download them first."
    ]
    assert "Traceback" not in err
    assert not (workspace / "runs" / "toy").exists()
    monkeypatch.setenv("LIGHTNING_PRIVACY_DEBUG", "1")
    with pytest.raises(Exception, match="weights are missing"):
        run("fit", "--config", recipe, "--model.missing", "true")


def test_what_a_constructor_refuses_is_one_line(run, recipe, workspace):
    code, _, err = run("fit", "--config", recipe, "--defences.louder.tone", "shrill")
    assert code == 1
    assert err.splitlines()[-1] == "error: Louder: `tone` is shrill; it must be high or low."
    assert not (workspace / "runs").exists()


def test_conflicting_defences_leave_nothing(run, recipe, workspace):
    code, _, err = run("fit", "--config", recipe, "--defences.dirty={}", "--defences.needs_clean={}")
    assert code == 1
    assert "`needs_clean` requires PER_SAMPLE_SEPARABLE" in err and "`dirty` breaks" in err
    assert not (workspace / "runs").exists() or not list((workspace / "runs").iterdir())


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(run, recipe, workspace):
    code, _, err = run("fit", "--config", recipe, "--model.poison_at", "3")
    assert code == 1
    assert "nan at step 3 (epoch 1)" in err and "checkpoints/last.ckpt" in err
    kept = torch.load(workspace / "runs/toy/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 2 and torch.isfinite(kept["state_dict"]["weight"]).all()


def test_lightnings_own_refusals_are_one_line_too(run, recipe):
    code, _, err = run("fit", "--config", recipe, "--trainer.max_epochs", "2", "--trainer.devices", "0")
    assert code == 1 and err.splitlines()[-1].startswith("error: ")


def test_validate_runs_without_touching_the_configuration(run, recipe, workspace):
    run("fit", "--config", recipe)
    before = (workspace / "runs/toy/config.yaml").read_bytes()
    code, out, err = run(
        "validate", "--config", recipe, "--model.slope", "3", "--ckpt_path", "runs/toy/checkpoints/last.ckpt"
    )
    assert code == 0, err
    assert "val/loss" in out
    assert (workspace / "runs/toy/config.yaml").read_bytes() == before


def test_another_split_needs_another_folder(run, recipe, workspace):
    run("fit", "--config", recipe)
    before = {p: p.read_bytes() for p in (workspace / "runs/toy").rglob("*") if p.is_file()}
    code, _, err = run("fit", "--config", recipe, "--data.split_seed", "1")
    assert code == 1
    assert "holds a run on split" in err and "--run_name" in err
    assert {p: p.read_bytes() for p in (workspace / "runs/toy").rglob("*") if p.is_file()} == before


def test_a_rehearsal_keeps_nothing(run, recipe, workspace):
    code, _, err = run("fit", "--config", recipe, "--trainer.fast_dev_run", "true", "--audits.coin", "null")
    assert code == 0, err
    assert not (workspace / "runs").exists()


def test_run_dir_wins_over_run_name_and_a_file_name_is_the_last_resort(recipe, write):
    assert str(built(["--config", recipe]).run_folder.path) == "runs/toy"
    assert str(built(["--config", recipe, "--run_dir", "else/where"]).run_folder.path) == "else/where"
    bare = write("bare.yaml", {"model": {"class_path": "Line"}})
    assert str(built(["--config", bare]).run_folder.path) == "runs/bare"
    assert str(built(["--config", bare, "--trainer.default_root_dir", "there"]).run_folder.path) == "there"


def test_the_bar_is_for_terminals(recipe, monkeypatch):
    from lightning.pytorch.callbacks import ProgressBar

    from lightning_privacy.callbacks.reporting.progress_lines import ProgressLines
    from lightning_privacy.cli.default_callbacks import default_callbacks
    from lightning_privacy.core.run_folder import RunFolder

    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda t=terminal: t)
        trainer = {"enable_progress_bar": None}
        added = default_callbacks(trainer, [], RunFolder("runs/x"))
        assert any(isinstance(c, ProgressLines) for c in added) is not terminal
        assert trainer["enable_progress_bar"] is (None if terminal else False)
    assert not any(isinstance(c, ProgressLines) for c in default_callbacks({}, [ProgressBar()], RunFolder("x")))


def test_help_comes_from_docstrings(run, recipe):
    code, out, _ = run("fit", "--defences.louder.help")
    assert code == 0
    assert "Multiplies the loss" in out and "By how much." in out and "High or low." in out
