"""lock-suggest takes the lock that holds on pictures for choices, reports held-out ones, and says so where there is none."""

import pytest

from lightning_privacy.cli.main import main
from lightning_privacy.core.results import AttackResult, Metric


def run_with(folder, choice, held_out=None, locked=True):
    """Write a run whose audit found (UP, LP, strongest attack) on either set of pictures."""
    folder.mkdir()
    notes = () if locked else ("No lock was trained into this model.",)
    names = (("lock_reference", "with_key"), ("lock", "no_key"), ("lock", "strongest"))
    lines = []
    for (family, attack), chosen, reported in zip(names, choice, held_out or choice, strict=True):
        extra = {"choice_accuracy": chosen, "choice_role": "val", "chosen_attack": "fine_tune/10_labels"}
        metrics = {"accuracy": Metric(reported)}
        lines.append(AttackResult(family, attack, "", 0, "0" * 64, {"holdout": 80}, metrics, notes=notes, extra=extra))
    (folder / "results.jsonl").write_text("".join(each.to_json() + "\n" for each in lines))
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return str(folder)


def test_the_lock_that_holds_best_is_taken(tmp_path, capsys):
    runs = [
        run_with(tmp_path / "open", (0.6, 0.9, 0.9), locked=False),
        run_with(tmp_path / "weak", (0.9, 0.1, 0.8)),
        run_with(tmp_path / "fair", (0.89, 0.3, 0.4)),
        run_with(tmp_path / "good", (0.88, 0.1, 0.2)),
        run_with(tmp_path / "costly", (0.5, 0.01, 0.05)),
    ]
    assert main(["lock-suggest", *runs]) == 0
    out = capsys.readouterr().out
    assert "Take good" in out and "it holds there too" in out and "fine_tune/10_labels" in out
    assert main(["lock-suggest", runs[1], "--baseline", "0.9"]) == 20
    assert "none of these locks holds" in capsys.readouterr().out
    assert main(["lock-suggest", runs[4], "--baseline", "0.9", "--within", "0.4"]) == 0


def test_held_out_pictures_choose_nothing(tmp_path, capsys):
    runs = [
        run_with(tmp_path / "open", (0.6, 0.9, 0.9), locked=False),
        # looks better on held-out pictures alone, and so does nobody take it
        run_with(tmp_path / "lucky", (0.9, 0.1, 0.3), (0.9, 0.1, 0.05)),
        run_with(tmp_path / "good", (0.9, 0.1, 0.2), (0.89, 0.1, 0.4)),
    ]
    assert main(["lock-suggest", *runs]) == 0
    out = capsys.readouterr().out
    assert "Take good" in out and "UP 89.0%" in out and "strongest attack 40.0%" in out
    # what was chosen and does not hold on held-out pictures is no lock that holds, whatever another run has there
    wrong = run_with(tmp_path / "overfitted", (0.9, 0.1, 0.1), (0.9, 0.1, 0.6))
    assert main(["lock-suggest", *runs, wrong]) == 20
    out = capsys.readouterr().out
    assert "Take overfitted" in out and "there it does not hold" in out


def test_the_baseline_is_chosen_alike(tmp_path, capsys):
    """Of two models without a lock the better one by choice counts, and on held-out pictures its own accuracy there."""
    runs = [
        run_with(tmp_path / "one", (0.6, 0.9, 0.9), (0.6, 0.80, 0.8), locked=False),
        run_with(tmp_path / "two", (0.6, 0.8, 0.8), (0.6, 0.99, 0.99), locked=False),
        run_with(tmp_path / "good", (0.9, 0.1, 0.2)),
    ]
    assert main(["lock-suggest", *runs]) == 0
    assert "baseline 80.0%" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    only = run_with(tmp_path / "good", (0.88, 0.1, 0.2))
    assert main(["lock-suggest", only]) == 1
    assert "without a lock" in capsys.readouterr().err
    results = tmp_path / "good" / "results.jsonl"
    old = results.read_text().replace("choice_accuracy", "another")
    results.write_text(old)
    assert main(["lock-suggest", only, "--baseline", "0.9"]) == 1
    assert "of an older version" in capsys.readouterr().err
    results.write_text("")
    assert main(["lock-suggest", only, "--baseline", "0.9"]) == 1
    assert "audits: {lock" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--within", "--at-most"])
def test_numbers_are_numbers(tmp_path, option):
    with pytest.raises(SystemExit) as leaving:
        main(["lock-suggest", str(tmp_path), option, "some"])
    assert leaving.value.code == 2
