"""The verbs dossier and gate: verdicts as exit codes, mistakes as one line."""

import json

import pytest
import yaml

from lightning_privacy.cli.main import main
from lightning_privacy.testing.toy_run import toy_result, write_toy_run


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def _run(*args):
        capsys.readouterr()
        try:
            code = main(list(args))
        except SystemExit as leaving:
            code = leaving.code
        return code, *capsys.readouterr()

    return _run


@pytest.fixture
def policy(tmp_path):
    """A policy under which the toy run's leak decides alone."""

    def _write(**rule):
        base = {
            "id": "leak",
            "metric": "auroc",
            "threshold": 0.6,
            "severity": "block",
            "origin": "chosen for this test",
        }
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({"name": "test", "version": 3, "rules": [{**base, **rule}]}))
        return "policy.yaml"

    return _write


@pytest.mark.parametrize(
    ("leak", "rule", "code", "verdict"),
    [
        (0.0, {}, 0, "go"),
        (0.0, {"threshold": 0.5, "severity": "warn"}, 10, "conditional"),
        (1.0, {}, 20, "no_go"),
        (0.0, {"metric": "tpr_at_fpr_0.001"}, 30, "insufficient_evidence"),
    ],
)
def test_the_exit_code_is_the_verdict(command, policy, tmp_path, leak, rule, code, verdict):
    write_toy_run(tmp_path / "run", [toy_result(leak=leak, strongest=True)])
    found, out, err = command("gate", "run", "--policy", policy(**rule))
    assert (found, err) == (code, "")
    assert out.startswith(f"{verdict}  (test, version 3)\n")
    assert ("rules hit: leak" in out) == (verdict in ("conditional", "no_go"))


def test_dossier_writes_its_files_and_gate_reads_them(command, tmp_path):
    write_toy_run(tmp_path / "run", [toy_result(leak=1.0, strongest=True), toy_result("h_prime", leak=0.9)])
    code, out, _ = command("dossier", "run")
    assert code == 0 and out.startswith("no_go  (research-default, version 1)") and len(out.splitlines()) < 12
    files = {p.name for p in (tmp_path / "run/dossier").iterdir()}
    assert files == {"dossier.json", "records.npz", "dossier.html", "MODEL_CARD.md"}
    for subject in ("run", "run/dossier", "run/dossier/dossier.json"):
        found, said, _ = command("gate", subject)
        assert found == 20 and "Shown to leak: AUROC of `calibrated_loss`" in said
    assert command("gate", "run/dossier/dossier.json", "--policy", "sacro-compat")[0] == 20


def test_the_owner_says_what_nobody_can_measure(command, tmp_path):
    write_toy_run(tmp_path / "run", [toy_result()])
    (tmp_path / "about.yaml").write_text("intended_use: research on faces\nlicence: apache-2.0\n")
    code, out, _ = command("dossier", "run", "--out", "out", "--about", "about.yaml", "--policy", "sacro-compat")
    assert code == 0 and "out/dossier.html" in out
    assert "Intended use: research on faces" in (tmp_path / "out/MODEL_CARD.md").read_text()
    (tmp_path / "about.yaml").write_text("intended_uses: x\n")
    code, _, err = command("dossier", "run", "--about", "about.yaml")
    assert code == 1 and "intended_uses" in err and "It may hold task, intended_use" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gate", "nowhere"], "There is no nowhere"),
        (["gate", "nowhere.json"], "There is no nowhere.json"),
        (["gate", "newer.json"], "schema version 7, and this installation reads up to 1"),
        (["gate", "torn.json"], "not JSON"),
        (["gate", "run", "--policy", "strict"], "no policy `strict`: it is no file, and shipped are research-default"),
        (["gate", "run", "--policy", "unknown.yaml"], "no metric `aurok`"),
        (["gate", "run", "--policy", "attack.yaml"], "names the unknown attack `liira`"),
        (["gate", "empty"], "empty is no run"),
        (["dossier", "nowhere"], "nowhere is no folder"),
        (["dossier", "run", "--about", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["dossier", "run", "--out", "torn.json"], "cannot be written to torn.json"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_1(command, policy, tmp_path, args, words):
    write_toy_run(tmp_path / "run", [toy_result(strongest=True)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "newer.json").write_text(json.dumps({"schema_version": 7}))
    (tmp_path / "torn.json").write_text('{"schema')
    (tmp_path / policy(metric="aurok")).rename(tmp_path / "unknown.yaml")
    (tmp_path / policy(attacks=["liira"])).rename(tmp_path / "attack.yaml")
    code, out, err = command(*args)
    assert (code, out) == (1, "") and words in err and len(err.splitlines()) == 1


def test_wrong_usage_is_exit_2_and_help_tells_the_codes(command):
    assert command("gate")[0] == 2 and command("dossier")[0] == 2
    code, out, _ = command("gate", "--help")
    assert code == 0 and "10 conditional, 20 no_go, 30" in " ".join(out.split())
    out = command("--help")[1]
    assert "gate also 10 conditional, 20 no_go, 30 insufficient_evidence" in out and "  dossier " in out


def test_pdf_without_a_browser_is_refused_before_anything_is_written(command, tmp_path, monkeypatch):
    write_toy_run(tmp_path / "run", [toy_result()])
    monkeypatch.setattr("shutil.which", lambda _: None)
    code, _, err = command("dossier", "run", "--pdf")
    assert code == 1 and "needs a Chromium" in err and not (tmp_path / "run/dossier").exists()
