"""Progress lines, metrics.csv, W&B: what a run leaves behind while it trains."""

import io
import json
import types

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from lightning_privacy.callbacks.reporting.metrics_csv import MetricsCSV
from lightning_privacy.callbacks.reporting.non_finite import StopOnNonFinite
from lightning_privacy.callbacks.reporting.progress_lines import ProgressLines, duration
from lightning_privacy.callbacks.reporting.step_time import StepTime
from lightning_privacy.callbacks.reporting.wandb_charts import WandbCharts, package_versions, roc_rows
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.errors import NonFiniteLossError


@pytest.fixture
def fit(fakes, tmp_path):
    def _fit(*callbacks, epochs=2, logger=False, **model):
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=list(callbacks), enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path, log_every_n_steps=1,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(fakes.Line(**model), fakes.Wrapped(fakes.Points(8)))
        return trainer

    return _fit


def test_progress_lines_tell_step_loss_speed_and_time_left(fit):
    out = io.StringIO()
    fit(ProgressLines(every_n_seconds=0, stream=out))
    lines = out.getvalue().splitlines()
    assert lines[0] == "training for 4 steps" and lines[-1].startswith("trained 4 steps in 0:00:0")
    assert len(lines) == 6
    assert lines[1].startswith("epoch 1/2  step 1/4  loss ") and "it/s  left 0:00:0" in lines[1]
    assert "val/loss" not in lines[1] and "val/loss" in lines[3]
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_progress_lines_wait_their_time(fit):
    out = io.StringIO()
    fit(ProgressLines(every_n_seconds=3600, stream=out))
    assert len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.9, "0:00:59"), (3600, "1:00:00"), (360000, "100:00:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_step_time_is_measured_after_warming_up(fit, tmp_path):
    fit(StepTime(warmup=1))
    line, epoch, parameters, trainable = RunFolder(tmp_path).measurements()
    assert (line["kind"], line["name"], line["n"], line["step"]) == ("cost", "seconds_per_step", 3, 4)
    assert 0 < line["value"] < 5
    assert epoch["name"] == "seconds_per_epoch" and epoch["value"] / line["value"] in range(1, 5)
    assert (parameters["name"], trainable["name"]) == ("parameters", "trainable_parameters")
    assert parameters["value"] >= trainable["value"] > 0


def test_nothing_measured_writes_nothing(fit, tmp_path):
    fit(StepTime(warmup=100))
    assert RunFolder(tmp_path).measurements() == []


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_loss_raises_before_backward(bad, trainer, fakes):
    StopOnNonFinite().on_before_backward(trainer, fakes.Line(), torch.tensor(1.0))
    with pytest.raises(NonFiniteLossError, match=r"of Line is .* at step 0 \(epoch 0\).*none was written yet"):
        StopOnNonFinite().on_before_backward(trainer, fakes.Line(), torch.tensor(bad))


def test_another_ranks_bad_loss_stops_this_rank_too(trainer, fakes, monkeypatch):
    monkeypatch.setattr(trainer.strategy, "reduce_boolean_decision", lambda decision, all: False)
    with pytest.raises(NonFiniteLossError, match="another rank"):
        StopOnNonFinite().on_before_backward(trainer, fakes.Line(), torch.tensor(1.0))


def test_a_bad_loss_leaves_the_weights(fakes, tmp_path):
    model = fakes.Line(poison_at=0)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[StopOnNonFinite()], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError):
        trainer.fit(model, fakes.Wrapped(fakes.Points(8)))
    assert model.weight.item() == 1.0


def test_metrics_grow_columns_and_survive_a_restart(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    logger = MetricsCSV(path)
    assert not path.parent.exists()
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    logger.log_metrics({"val/loss": 0.4, "epoch": 0}, step=1)
    again = MetricsCSV(path)  # a requeued job
    again.log_metrics({"val/loss": 0.3, 'a, "quoted" name': 1.0}, step=2)
    rows = read_metrics(path)
    assert list(rows[0]) == ["step", "train/loss", "epoch", "val/loss", 'a, "quoted" name']
    assert [(r["step"], r["train/loss"], r["val/loss"]) for r in rows] == [
        ("0", "0.5", ""),
        ("1", "", "0.4"),
        ("2", "", "0.3"),
    ]


def test_rocs_have_few_points_and_no_zero():
    points = tuple((i / 1000, i / 1000) for i in range(1001))
    result = AttackResult("membership", "a", "x", 0, "", {}, {}, roc=points)
    rows = roc_rows(result)
    assert len(rows) <= 200 and min(min(r) for r in rows) > 0


def test_versions_are_those_installed():
    assert package_versions()["torch"] == torch.__version__.split("+")[0] or "+" in package_versions()["torch"]


class Recorder(WandbLogger):
    """Keeps what W&B would be told."""

    def __init__(self):
        self.calls = []

    @property
    def experiment(self):
        return types.SimpleNamespace(log=lambda values: self.calls.append(("chart", list(values))))

    def log_hyperparams(self, params):
        self.calls.append(("config", params))

    def log_table(self, key, columns, data):
        self.calls.append(("table", key, len(data)))


def test_charts_log_only_what_is_new(trainer, fakes, tmp_path, monkeypatch):
    from lightning_privacy.callbacks.reporting import wandb_charts

    run, recorder = RunFolder(tmp_path), Recorder()
    monkeypatch.setattr(wandb_charts, "_loggers", lambda trainer: [recorder])
    result = AttackResult("membership", "old", "x", 0, "", {}, {"auroc": Metric(0.5)}, roc=((0.0, 0.0), (1.0, 1.0)))
    run.append_result(result)
    charts = WandbCharts()
    charts.on_fit_start(trainer, fakes.Line())
    assert [c[0] for c in recorder.calls] == ["config"]
    charts.on_validation_end(trainer, fakes.Line())
    assert len(recorder.calls) == 1
    run.append_result(AttackResult(**{**result.__dict__, "attack": "new"}))
    charts.on_validation_end(trainer, fakes.Line())
    charts.on_fit_end(trainer, fakes.Line())
    assert recorder.calls[1:] == [
        ("table", "attack/membership/roc_table", 2), ("chart", ["attack/membership/roc"]),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
def test_offline_wandb_needs_no_network_and_continues_one_run(run, recipe, write, workspace, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = write(
        "wandb.yaml", {"trainer": {"logger": {"class_path": "WandbLogger", "init_args": {"offline": True}}}}
    )
    args = ["fit", "--config", recipe, "--config", offline, "--ckpt_path", "last"]
    code, _, err = run(*args, "--trainer.max_epochs", "1")
    assert code == 0, err
    folder = RunFolder(workspace / "runs" / "toy")
    first = folder.wandb_id.read_text()
    code, _, err = run(*args)
    assert code == 0, err
    assert folder.wandb_id.read_text() == first
    runs = [p.name for p in (folder.path / "wandb").glob("offline-run-*")]
    assert runs and all(name.endswith(first) for name in runs)
    assert not (workspace / "wandb").exists()


def test_without_wandb_a_recipe_that_asks_for_it_still_trains(run, recipe, write, workspace, monkeypatch):
    from lightning_privacy.cli import run_config

    real = run_config.importlib.util.find_spec
    monkeypatch.setattr(run_config.importlib.util, "find_spec", lambda n: None if n == "wandb" else real(n))
    offline = write(
        "wandb.yaml", {"trainer": {"logger": {"class_path": "WandbLogger", "init_args": {"offline": True}}}}
    )
    code, _, err = run("fit", "--config", recipe, "--config", offline)
    assert code == 0, err
    assert read_metrics(workspace / "runs/toy/metrics.csv")
    assert not (workspace / "runs/toy/wandb").exists()


def test_measurements_are_valid_json(fit, tmp_path):
    fit(StepTime(warmup=0))
    lines = RunFolder(tmp_path).measurements_file.read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"cost"}
