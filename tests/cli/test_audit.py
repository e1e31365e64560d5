"""Attacks on a finished run."""

import pytest

from lightning_privacy.core.run_folder import RunFolder


@pytest.fixture
def finished(run, recipe, workspace):
    code, _, err = run("fit", "--config", recipe, "--audits.coin", "null")
    assert code == 0, err
    return RunFolder(workspace / "runs" / "toy")


def test_a_finished_run_is_audited_at_its_step_and_only_once(run, finished, fakes):
    fakes.CoinAudit.calls = 0
    code, out, err = run("audit", "runs/toy", "--audits.coin.value", "0.7")
    assert code == 0, err
    assert [(r.attack, r.step, r.epoch, r.metrics["auroc"].value) for r in finished.results()] == [("coin", 4, 2, 0.7)]
    assert "AUROC 0.700 [0.400, 0.600]" in out
    code, out, _ = run("audit", "runs/toy", "--audits.coin.value", "0.7")
    assert code == 0 and "nothing to do" in out and fakes.CoinAudit.calls == 1
    run("audit", "runs/toy", "--audits.coin.value", "0.8", "--again")
    assert fakes.CoinAudit.calls == 2
    assert finished.results()[0].metrics["auroc"].value == 0.8


def test_the_audited_model_is_the_trained_one(run, finished, fakes, monkeypatch):
    seen = []
    audit = fakes.CoinAudit.audit
    monkeypatch.setattr(
        fakes.CoinAudit, "audit", lambda self, t, m, e: (seen.append(float(m.weight.detach())), audit(self, t, m, e))[1]
    )
    run("audit", "runs/toy", "--audits.coin={}")
    import torch

    saved = torch.load(finished.last_checkpoint(), weights_only=True)["state_dict"]["weight"]
    assert seen == [float(saved)] and seen != [2.0]


def test_an_older_checkpoint_is_another_step(run, finished):
    best = next(p for p in finished.checkpoints.iterdir() if p.name.startswith("best"))
    code, _, err = run("audit", "runs/toy", "--audits.coin={}", "--checkpoint", str(best))
    assert code == 0, err
    import torch

    assert [r.step for r in finished.results()] == [torch.load(best, weights_only=True)["global_step"]]


def test_another_split_is_refused_before_anything_is_written(run, finished):
    before = {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()}
    code, _, err = run("audit", "runs/toy", "--audits.coin={}", "--data.split_seed", "5")
    assert code == 1
    assert "trained on split 000000000000" in err and err.count("error:") == 1
    assert {p: p.read_bytes() for p in finished.path.rglob("*") if p.is_file()} == before


def test_what_cannot_be_audited_is_refused(run, workspace, finished):
    assert run("audit", "runs/nowhere")[2].startswith("error: runs/nowhere is no folder")
    (workspace / "empty").mkdir()
    assert "is no run" in run("audit", "empty")[2]
    assert "has no audits" in run("audit", "runs/toy")[2]
    assert "There is no checkpoint x.ckpt" in run("audit", "runs/toy", "--checkpoint", "x.ckpt")[2]
    for path in finished.checkpoints.iterdir():
        path.unlink()
    code, _, err = run("audit", "runs/toy", "--audits.coin={}")
    assert code == 1 and "neither checkpoints nor an adapter" in err


def test_a_run_with_an_adapter_alone_is_audited(run, finished, fakes, monkeypatch):
    for path in finished.checkpoints.iterdir():
        path.unlink()
    finished.adapter.mkdir()
    code, _, err = run("audit", "runs/toy", "--audits.coin={}")
    assert code == 1 and "`load_adapter`" in err
    loaded = []
    monkeypatch.setattr(fakes.Line, "load_adapter", lambda self, path: loaded.append(path.name), raising=False)
    code, _, err = run("audit", "runs/toy", "--audits.coin={}")
    assert code == 0, err
    assert loaded == ["adapter"]


def test_a_misspelt_override_is_a_usage_error(run, finished):
    code, _, err = run("audit", "runs/toy", "--audits.coin.valeu", "0.7")
    assert code == 2 and "Did you mean `value`" in err
