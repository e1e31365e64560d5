"""lock-suggest takes the lock that keeps accuracy and keeps others out, and says so where there is none."""

import pytest

from lightning_privacy.cli.main import main
from lightning_privacy.core.results import AttackResult, Metric


def run_with(folder, up, lp, best, locked=True):
    folder.mkdir()
    notes = () if locked else ("No lock was trained into this model.",)

    def line(family, attack, value, **extra):
        metrics = {"accuracy": Metric(value)}
        return AttackResult(family, attack, "", 0, "0" * 64, {"holdout": 80}, metrics, notes=notes, extra=extra)

    lines = [
        line("lock_reference", "with_key", up),
        line("lock", "no_key", lp),
        line("lock", "strongest", best, chosen_attack="fine_tune/5_percent"),
    ]
    (folder / "results.jsonl").write_text("".join(each.to_json() + "\n" for each in lines))
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return str(folder)


def test_the_lock_that_holds_best_is_taken(tmp_path, capsys):
    runs = [
        run_with(tmp_path / "open", 0.6, 0.9, 0.9, locked=False),
        run_with(tmp_path / "weak", 0.9, 0.1, 0.8),
        run_with(tmp_path / "fair", 0.89, 0.3, 0.4),
        run_with(tmp_path / "good", 0.88, 0.1, 0.2),
        run_with(tmp_path / "costly", 0.5, 0.01, 0.05),
    ]
    assert main(["lock-suggest", *runs]) == 0
    out = capsys.readouterr().out
    assert "Take good" in out and "87.0%" in out and "20.0% by fine_tune/5_percent" in out
    assert main(["lock-suggest", runs[1], "--baseline", "0.9"]) == 20
    assert "none of these locks holds" in capsys.readouterr().out
    assert main(["lock-suggest", runs[4], "--baseline", "0.9", "--within", "0.4"]) == 0


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    only = run_with(tmp_path / "good", 0.88, 0.1, 0.2)
    assert main(["lock-suggest", only]) == 1
    assert "without a lock" in capsys.readouterr().err
    (tmp_path / "good" / "results.jsonl").write_text("")
    assert main(["lock-suggest", only, "--baseline", "0.9"]) == 1
    assert "audits: {lock" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--within", "--at-most"])
def test_numbers_are_numbers(tmp_path, option):
    with pytest.raises(SystemExit) as leaving:
        main(["lock-suggest", str(tmp_path), option, "some"])
    assert leaving.value.code == 2
