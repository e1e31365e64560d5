"""Damaged files of a run, a policy or a dossier: one clear error each, and no file half written."""

import os
from pathlib import Path

import numpy as np
import pytest

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.canonical import dossier_json, load_dossier
from lightning_privacy.report.dossier.models import RecordSummary
from lightning_privacy.report.dossier.policy import load_policy
from lightning_privacy.report.dossier.records import load_records
from lightning_privacy.report.dossier.run_secret import run_secret
from lightning_privacy.report.dossier.write import write_dossier
from lightning_privacy.report.summary import summarise
from lightning_privacy.report.yaml_file import read_yaml
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

POLICY = load_policy("research-default")


@pytest.fixture
def run(tmp_path):
    return write_toy_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "cannot be read as YAML"),
        (b"a: [1", "cannot be read as YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        (b"[" * 100_000, "nested too deeply"),
        (b"- 1", "holds a list and no mapping"),
        (b"", "is empty"),
        (b"defences: [a]", "`defences` of .* is a list"),
        (b"audits: text", "`audits` of .* is `text`"),
        (b"defences: {x: 3}", r"`defences\.x` of .* is `3`"),
        (b"audits: {x: {init_args: 3}}", r"`audits\.x\.init_args` of .* is `3`"),
        (b"model: {}\nmodel: {}", "`model` is there twice"),
    ],
)
def test_a_damaged_configuration_is_one_clear_error(run, content, words):
    run.config.write_bytes(content)
    with pytest.raises(InputError, match=rf"config\.yaml.*{words}|{words}.*config\.yaml|{words}") as refused:
        summarise(run)
    assert "config.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_configuration_may_switch_off_and_nest_and_merge(run, tmp_path):
    run.config.write_text("defences: {x: null, y: {}, z: }\naudits:\n")
    assert summarise(run).defences == {"y": {}} and summarise(run).audits == {}
    (tmp_path / "merged.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert read_yaml(tmp_path / "merged.yaml")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("column", ["val/loss", "train/accuracy"])
def test_words_in_the_metrics_are_one_clear_error(run, column):
    run.metrics.write_text(f"step,{column},val/accuracy\n4,high,0.5\n")
    with pytest.raises(InputError, match=rf"metrics\.csv: `{column}` at step 4 is 'high', which is no number"):
        build_dossier(run, POLICY)


@pytest.mark.parametrize("value", [1.7, -0.2, float("inf")])
def test_a_rate_outside_zero_and_one_names_the_attack(tmp_path, value):
    result = toy_result()
    metrics = {**result.metrics, "tpr_at_fpr_0.01": result.metrics["auroc"].__class__(value)}
    with pytest.raises(
        InputError, match=r"`tpr_at_fpr_0.01` of the attack `calibrated_loss` at step 300 is .* no share"
    ):
        build_dossier(write_toy_run(tmp_path / "run", [toy_result(metrics=metrics)]), POLICY)


@pytest.mark.parametrize(
    ("settings", "claimed"),
    [
        ({"dp": {"target_epsilon": float("inf")}}, None),
        ({"dp": {"target_epsilon": 8}}, 8.0),
        ({"radius": {"epsilon": 0.1}}, None),
        ({"radius": {"epsilon": 0.1}, "dp": {"target_epsilon": 8.0}, "pate": {"epsilon": 2.0, "delta": 1e-6}}, 2.0),
        (
            {
                "loose": {"target_epsilon": float("inf")},
                "dp": {"class_path": "a.B", "init_args": {"target_epsilon": 3}},
            },
            3.0,
        ),
    ],
)
def test_the_smallest_claim_of_all_defences_counts(tmp_path, settings, claimed):
    dossier = build_dossier(write_toy_run(tmp_path / "run", settings={"defences": settings}), POLICY).dossier
    assert (dossier.claims and dossier.claims.epsilon) == claimed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_epsilon": -1}, r"claimed epsilon is -1 \(settings of the defence dp\)"),
        ({"target_epsilon": float("nan")}, "claimed epsilon is nan"),
        ({"target_epsilon": 1, "delta": 2}, "claimed delta is 2"),
    ],
)
def test_an_impossible_claim_is_one_clear_error(tmp_path, settings, words):
    run = write_toy_run(tmp_path / "run", settings={"defences": {"dp": settings}})
    with pytest.raises(InputError, match=words):
        build_dossier(run, POLICY)


def test_an_impossible_measured_claim_is_one_clear_error(run):
    run.append_measurement({"kind": "privacy", "name": "epsilon", "value": -1.0, "step": 300})
    with pytest.raises(InputError, match=r"-1 \(measurement privacy/epsilon\)"):
        build_dossier(run, POLICY)


def test_files_nested_too_deeply_are_refused(tmp_path):
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(InputError, match="no dossier: it is nested too deeply"):
        load_dossier(tmp_path / "deep")
    with pytest.raises(InputError, match="cannot be read as YAML: it is nested too deeply"):
        load_policy(tmp_path / "deep")


@pytest.mark.parametrize("counts", [[], [3], [3, 0, -1], [1, 0, 0]])
def test_flag_counts_that_do_not_add_up_are_refused(counts):
    whole = {"n_member": 2, "n_nonmember": 2, "id_source": "", "attacks": {}, "flagging_attacks": ["a", "b"]}
    assert RecordSummary(**whole, member_flag_counts=[1, 0, 1], nonmember_flag_counts=[2, 0, 0])
    with pytest.raises(ValueError, match="nonmember_flag_counts must count 2 records"):
        RecordSummary(**whole, member_flag_counts=[1, 0, 1], nonmember_flag_counts=counts)


def test_a_dossier_without_flag_counts_is_a_damaged_one(run, tmp_path):
    import json

    raw = json.loads(dossier_json(build_dossier(run, POLICY).dossier))
    raw["records"]["member_flag_counts"] = []
    (tmp_path / "d.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="damaged dossier: records: .*member_flag_counts"):
        load_dossier(tmp_path / "d.json")


def _truncated(raw):
    return raw[: len(raw) // 2]


def _flipped(raw):
    return raw[:200] + bytes([raw[200] ^ 255]) + raw[201:]


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda raw: b"", lambda raw: b"hello"])
def test_a_damaged_table_of_records_is_one_clear_error(tmp_path, damage):
    np.savez_compressed(tmp_path / "records.npz", scores=np.random.default_rng(0).random((50, 3)))
    path = tmp_path / "damaged.npz"
    path.write_bytes(damage((tmp_path / "records.npz").read_bytes()))
    with pytest.raises(InputError, match="is no table of records"):
        load_records(path)


def test_a_single_array_or_a_folder_is_no_table_of_records(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "folder").mkdir()
    for name in ("one.npy", "folder", "nowhere"):
        with pytest.raises(InputError, match="is no table of records"):
            load_records(tmp_path / name)


@pytest.mark.parametrize("blocked", ["dossier.json", "MODEL_CARD.md", "dossier.pdf"])
def test_a_folder_in_the_place_of_a_file_is_seen_before_anything_is_replaced(run, tmp_path, blocked, monkeypatch):
    monkeypatch.setattr("lightning_privacy.report.dossier.write.render_html", lambda _: "<p>page</p>")
    (tmp_path / "out" / blocked).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{blocked} is a folder"):
        write_dossier(build_dossier(run, POLICY), run, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [blocked]


def test_a_disk_that_refuses_is_one_clear_error_and_leaves_the_old_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_privacy.report.dossier.write.render_html", lambda _: "<p>page</p>")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dossier.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_privacy.report.dossier.write.os.replace", full)
    with pytest.raises(InputError, match=r"cannot be written to .*out: No space left on device"):
        write_dossier(build_dossier(run, POLICY), run, tmp_path / "out")
    assert [p.read_text() for p in (tmp_path / "out").iterdir()] == ["old"]


def test_the_secret_is_made_once_whole_and_for_its_owner_alone(tmp_path):
    first = run_secret(tmp_path)
    assert len(first) == 32 and run_secret(tmp_path) == first
    (path,) = tmp_path.iterdir()
    assert path.name == "dossier_secret" and path.stat().st_mode & 0o777 == 0o600


def test_of_two_processes_that_make_the_secret_the_first_wins(tmp_path, monkeypatch):
    real = os.link

    def late(source, target):
        Path(target).write_text("ab" * 32)
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert run_secret(tmp_path).hex() == "ab" * 32
    assert [p.name for p in tmp_path.iterdir()] == ["dossier_secret"]


def test_a_file_system_without_hard_links_keeps_the_secret_too(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unknown)
    assert run_secret(tmp_path) == run_secret(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["dossier_secret"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read"),
        (lambda path: path.write_text("ab"), "is damaged"),
        (lambda path: path.write_bytes(b"\xff"), "is damaged"),
    ],
)
def test_a_secret_that_cannot_be_used_is_one_clear_error(tmp_path, spoil, words):
    spoil(tmp_path / "dossier_secret")
    with pytest.raises(InputError, match=f"dossier_secret {words}"):
        run_secret(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(InputError, match=r"cannot be written to .*dossier_secret \(Permission denied\)"):
        run_secret(tmp_path)
