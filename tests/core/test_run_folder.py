"""The folder of a run: what is written comes back, also after a kill."""

import json
from pathlib import Path

import pytest

from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder, read_metrics, write_atomically
from lightning_privacy.errors import InputError


def result(attack="loss", step=3, value=0.6, **more):
    metrics, counts = {"auroc": Metric(value, 0.4, 0.8)}, {"member": 4, "holdout": 4}
    points = ((0.0, 0.0), (1.0, 1.0))
    return AttackResult(
        "membership", attack, "loss queries", 0, "ab" * 32, counts, metrics, step=step, roc=points, **more
    )


def test_results_come_back_as_they_were(tmp_path):
    run = RunFolder(tmp_path / "new" / "run")
    run.append_result(result(notes=("small sample",)))
    assert run.results() == [result(notes=("small sample",))]


def test_the_last_result_of_a_key_wins(tmp_path):
    run = RunFolder(tmp_path)
    for r in (result(value=0.6), result(step=5, value=0.7), result("h_prime"), result(value=0.9)):
        run.append_result(r)
    assert [(r.attack, r.step, r.metrics["auroc"].value) for r in run.results()] == [
        ("loss", 5, 0.7), ("h_prime", 3, 0.6), ("loss", 3, 0.9),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_cut_by_a_kill_harms_no_other(tmp_path, cut):
    run = RunFolder(tmp_path)
    run.append_result(result())
    whole = run.results_file.read_bytes()
    run.results_file.write_bytes(whole + whole[:cut])
    assert len(run.results()) == 1
    run.append_result(result("h_prime"))
    assert [r.attack for r in run.results()] == ["loss", "h_prime"]


def test_a_corrupt_line_is_an_error(tmp_path):
    run = RunFolder(tmp_path)
    run.results_file.write_text('{"family": 3}\n')
    with pytest.raises(InputError, match=r"results\.jsonl has a line that is no attack result"):
        run.results()
    run.measurements_file.write_text("[]\n")
    with pytest.raises(InputError, match=r"measurements\.jsonl has a line that is no measurement"):
        run.measurements()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {"auroc": {"value": "0.5"}}}, '`metrics.auroc.value` is "0.5", which is not a number'),
        ({"metrics": {"auroc": {"value": None}}}, "`metrics.auroc.value` is null"),
        ({"metrics": {"auroc": {"value": True}}}, "`metrics.auroc.value` is true"),
        ({"metrics": {"auroc": {"value": 10**400}}}, "`metrics.auroc.value` is 1"),
        ({"metrics": {"auroc": {"value": 0.5, "low": "x"}}}, "`metrics.auroc.low` is"),
        ({"metrics": {"auroc": {"value": 0.5, "mean": 1}}}, "`metrics.auroc.mean` is unknown"),
        ({"metrics": {"auroc": {}}}, "`metrics.auroc.value` is missing"),
        ({"metrics": {"auroc": 3}}, "`metrics.auroc` is 3, which is not a mapping"),
        ({"metrics": []}, "`metrics` is [], which is not a mapping"),
        ({"fit_auroc": "a"}, "`fit_auroc` is"),
        ({"step": "7"}, "`step` is"),
        ({"step": None}, "`step` is null"),
        ({"step": -1}, "`step` is -1"),
        ({"seed": 1.5}, "`seed` is 1.5"),
        ({"roc": [["a", "b"]]}, "`roc` is"),
        ({"roc": [[0.1]]}, "`roc` is"),
        ({"notes": [1]}, "`notes` is [1]"),
        ({"n": [1, 2]}, "`n` is [1, 2]"),
        ({"n": {"member": -4}}, '`n` is {"member": -4}'),
        ({"n": {"member": 1.5}}, "`n` is"),
        ({"extra": None}, "`extra` is null"),
        ({"extra": {"member_scores": ["a"]}}, "`extra.member_scores` is"),
        ({"extra": {"member_ids": 3}}, "`extra.member_ids` is 3"),
        ({"converged": "yes"}, "`converged` is"),
        ({"surprise": 1}, "`surprise` is unknown"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_file_and_line(tmp_path, changes, words):
    run = RunFolder(tmp_path)
    run.append_result(result())
    bad = {**json.loads(result("h_prime").to_json()), **changes}
    run.results_file.write_text(run.results_file.read_text() + json.dumps(bad) + "\n")
    with pytest.raises(InputError) as refused:
        run.results()
    assert "results.jsonl has a line that is no attack result, line 2: " + words in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "utility", "name": "a"}', "`value` is missing"),
        ('{"kind": "utility", "name": "a", "value": "x"}', '`value` is "x"'),
        ('{"kind": "utility", "name": [1], "value": 1}', "`name` is [1]"),
        ('{"kind": "utility", "name": "a", "value": 1, "step": null}', "`step` is null"),
        ('{"kind": "utility", "name": "a", "value": 1, "valid": 1}', "`valid` is 1"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{", "it is no JSON"),
    ],
)
def test_a_measurement_of_the_wrong_type_is_named_with_file_and_line(tmp_path, line, words):
    run = RunFolder(tmp_path)
    run.append_measurement({"kind": "utility", "name": "a", "value": None})
    run.measurements_file.write_text(run.measurements_file.read_text() + "\n" + line + "\n")
    with pytest.raises(InputError) as refused:
        run.measurements()
    assert "measurements.jsonl has a line that is no measurement, line 3: " + words in str(refused.value)


def test_what_is_no_utf_8_is_named_with_its_line(tmp_path):
    run = RunFolder(tmp_path)
    for file, read in (
        (run.results_file, run.results),
        (run.measurements_file, run.measurements),
        (run.metrics, lambda: read_metrics(run.metrics)),
    ):
        file.write_bytes(b"\n\xff\n")
        with pytest.raises(InputError, match=rf"{file.name}, line 2: this is no UTF-8"):
            read()


def test_a_line_cut_inside_a_character_by_a_kill_is_left_out(tmp_path):
    run = RunFolder(tmp_path)
    run.append_result(result())
    run.results_file.write_bytes(run.results_file.read_bytes() + '{"é'.encode()[:-1])
    assert len(run.results()) == 1


@pytest.mark.parametrize("step", ["x", "3.0", "-1"])
def test_a_step_that_is_no_number_is_named_with_its_line(tmp_path, step):
    run = RunFolder(tmp_path)
    run.metrics.write_text(f"step,val/loss\n1,0.5\n{step},0.4\n")
    with pytest.raises(InputError, match=rf"metrics\.csv, line 3: the step is '{step}'"):
        read_metrics(run.metrics)


def test_measurements_get_their_defaults_and_the_last_wins(tmp_path):
    run = RunFolder(tmp_path)
    run.append_measurement({"kind": "quality", "name": "kid", "value": 0.1, "step": 1})
    run.append_measurement({"kind": "quality", "name": "kid", "value": 0.2, "step": 1, "n": 50})
    assert run.measurements() == [
        {"kind": "quality", "name": "kid", "value": 0.2, "step": 1, "n": 50, "epoch": 0, "low": None, "high": None,
         "valid": True, "reason": ""},
    ]  # fmt: skip


def test_measurements_that_are_not_finite_are_invalid_and_valid_json(tmp_path):
    run = RunFolder(tmp_path)
    run.append_measurement({"kind": "quality", "name": "kid", "value": float("nan"), "high": float("inf")})
    raw = json.loads(run.measurements_file.read_text(), parse_constant=lambda c: pytest.fail(c))
    assert (raw["value"], raw["valid"], raw["high"]) == (None, False, None)
    assert "nan" in raw["reason"]


def test_misspelt_measurements_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"lacks \['value'\] or has unknown keys \['val'\]"):
        RunFolder(tmp_path).append_measurement({"kind": "quality", "name": "kid", "val": 1})


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no run"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    assert RunFolder.open(tmp_path).name == tmp_path.name


def test_reading_creates_nothing(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert run.results() == [] and run.measurements() == [] and run.last_checkpoint() is None
    assert not run.path.exists()


def test_the_newest_configuration_and_checkpoint_are_found(tmp_path):
    run = RunFolder(tmp_path)
    assert run.config == tmp_path / "config.yaml"
    for name in ("config.yaml", "config-2.yaml", "config-10.yaml", "config-old.yaml"):
        (tmp_path / name).write_text("{}")
    assert run.config.name == "config-10.yaml"
    run.checkpoints.mkdir()
    (run.checkpoints / "best.ckpt").write_bytes(b"")
    assert run.last_checkpoint().name == "best.ckpt"
    (run.checkpoints / "last.ckpt").write_bytes(b"")
    assert run.last_checkpoint().name == "last.ckpt"


def test_atomic_writing_leaves_the_old_text_on_failure(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_processes_of_one_id_in_two_containers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    names = []
    real = Path.replace

    def note(source, target):
        names.append(source.name)
        return real(source, target)

    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr(Path, "replace", note)
    for _ in range(2):
        write_atomically(tmp_path / "file.txt", "text")
    assert len(set(names)) == 2
