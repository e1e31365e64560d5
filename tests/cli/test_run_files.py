"""A new training in an old folder: what was measured on the old model does not pass for the new one's."""

import lightning.pytorch as L
import pytest

from lightning_privacy.callbacks.reporting.metrics_csv import MetricsCSV
from lightning_privacy.callbacks.reporting.run_files import RunFiles
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.testing.toy_run import toy_result


@pytest.fixture
def trainer(tmp_path):
    def make(epochs=1):
        return L.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[RunFiles()], logger=MetricsCSV(tmp_path / "metrics.csv"),
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
            log_every_n_steps=1, num_sanity_val_steps=0,
        )  # fmt: skip

    return make


@pytest.fixture
def parts(fakes):
    return lambda: (fakes.Line(), fakes.Wrapped(fakes.Points(8)))


@pytest.fixture
def old(tmp_path):
    run = RunFolder(tmp_path)
    run.append_result(toy_result(step=2))
    run.append_measurement({"kind": "quality", "name": "kid", "value": 0.1, "step": 2})
    run.metrics.write_text("step,val/loss\n90,0.1\n")
    return run


def test_a_new_training_sets_the_old_results_aside(old, trainer, parts, tmp_path, caplog):
    caplog.set_level("INFO")
    before = {p.name: p.read_bytes() for p in (old.results_file, old.measurements_file, old.metrics)}
    trainer().fit(*parts())
    assert old.results() == [] and old.measurements() == []
    assert {row["step"] for row in read_metrics(old.metrics)} == {"0", "1"}
    for name, content in before.items():
        stem, suffix = name.split(".")
        assert (tmp_path / f"{stem}-1.{suffix}").read_bytes() == content
    said = [line for line in caplog.messages if "results-1.jsonl" in line]
    assert len(said) == 1 and "earlier training" in said[0] and "\n" not in said[0]


def test_the_first_free_number_is_taken_and_nothing_is_overwritten(old, trainer, parts, tmp_path):
    (tmp_path / "measurements-1.jsonl").write_text("kept")
    trainer().fit(*parts())
    old.append_result(toy_result())
    trainer().fit(*parts())
    assert (tmp_path / "measurements-1.jsonl").read_text() == "kept"
    assert {p.name for p in tmp_path.glob("results-*")} == {"results-2.jsonl", "results-3.jsonl"}


def test_a_resume_keeps_the_results(old, trainer, parts, tmp_path):
    first, (module, data) = trainer(), parts()
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    old.append_result(toy_result("h_prime", step=2))
    trainer(2).fit(*parts(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert [r.attack for r in old.results()] == ["h_prime"]
    first.fit_loop.max_epochs = 2
    first.fit(module, data)  # the same trainer goes on
    assert [r.attack for r in old.results()] == ["h_prime"]


def test_an_audit_of_a_model_without_steps_keeps_the_results(old, trainer, parts):
    class Audits(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            RunFiles().on_fit_start(trainer, pl_module)

    judge = trainer()
    judge.callbacks.append(Audits())
    judge.validate(*parts(), verbose=False)
    assert len(old.results()) == 1 and judge.global_step == 0


def test_a_first_training_says_nothing(trainer, parts, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "metrics.csv").write_text("step,val/loss\n")
    trainer().fit(*parts())
    assert "earlier training" not in caplog.text and not list(tmp_path.glob("*-1.*"))
