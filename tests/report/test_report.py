"""Tables, figures and pages from run folders."""

import base64
import re
from dataclasses import replace

import pytest
import yaml

from lightning_privacy.cli.main import main
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.figures import loss_figure, privacy_utility_figure, roc_figure, to_svg
from lightning_privacy.report.html import render
from lightning_privacy.report.summary import best_undefended, summarise, untuned
from lightning_privacy.report.tables import caveats, compare_rows

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def attack(name="calibrated_loss", step=30, auroc=0.8, strongest=True, **more):
    metrics = {
        "auroc": Metric(auroc, auroc - 0.08, auroc + 0.08),
        "tpr_at_fpr_0.05": Metric(0.4, 0.2, 0.6),
        "tpr_at_fpr_0.001": Metric(0.1, valid=False, reason="80 non-members are too few"),
    }
    fields = {
        "family": "membership",
        "attack": name,
        "access": "loss queries",
        "seed": 0,
        "split_hash": "ab" * 32,
        "n": {"member": 40, "holdout": 80},
        "step": step,
        "strongest": strongest,
        "roc": ((0.0, 0.0), (0.1, 0.5), (1.0, 1.0)),
        "metrics": metrics,
    }
    return AttackResult(**{**fields, **more})


@pytest.fixture
def make(tmp_path):
    def _make(name, losses, attacks=(), defences=None, seconds=None):
        run = RunFolder(tmp_path / "runs" / name)
        run.path.mkdir(parents=True)
        run.config.write_text(yaml.safe_dump({"run_name": name, "defences": defences or {}}))
        rows = "".join(f"{step},,{loss}\n" for step, loss in losses.items())
        run.metrics.write_text("step,train/loss,val/loss\n" + rows)
        for result in attacks:
            run.append_result(result)
        if seconds:
            run.append_measurement({"kind": "cost", "name": "seconds_per_step", "value": seconds, "step": 30})
        return run

    return _make


@pytest.fixture
def runs(make):
    undefended = [attack(step=s, auroc=a) for s, a in ((10, 0.6), (20, 0.7), (30, 0.8))]
    make("untuned", {0: 0.285}, [attack(step=0, auroc=0.5)])
    make("undefended", {10: 0.2760, 20: 0.2735, 30: 0.2725}, undefended, seconds=0.1)
    defended = make(
        "smp", {10: 0.28, 20: 0.275, 30: 0.2762}, [attack(auroc=0.58)], {"smp_lora": {"strength": 10}}, seconds=0.15
    )
    for name, value in (("fd_efficientnet_lite0_floor", 7.0), ("fd_efficientnet_lite0_member", 8.0)):
        defended.append_measurement({"kind": "quality", "name": name, "value": value, "step": 30, "n": {"real": 9}})
    defended.append_measurement({"kind": "quality", "name": "fd_efficientnet_lite0", "value": 41.25, "step": 30})
    folders = [defended.path.parent / n for n in ("untuned", "undefended", "smp")]
    return [summarise(RunFolder.open(p)) for p in folders]


def test_the_table_has_the_numbers_of_the_folders(runs):
    rows = {row.name: row.cells for row in compare_rows(runs)}
    numbers = ("0.800 [0.720, 0.880]", "0.400 [0.200, 0.600]", "-", "0.100")
    assert rows["undefended"] == ("0.2725", "100 %", "calibrated_loss", *numbers)
    assert rows["smp"][:2] == ("0.2750", "80 %")  # (0.285 - 0.275) / (0.285 - 0.2725), at its best epoch
    assert rows["smp"][3] == "0.580 [0.500, 0.660]" and rows["smp"][5] == "41.2"
    assert rows["untuned"][:2] == ("0.2850", "0 %")


def test_references_are_found_by_what_runs_are_not_by_their_names(make):
    make("a", {0: 0.3})
    make("b", {5: 0.29})
    make("c", {5: 0.27})
    make("d", {5: 0.26}, defences={"smp_lora": {}})
    base = RunFolder(make("e", {5: 0.25}, defences={"x": None}).path).path.parent
    runs = [summarise(RunFolder(base / n)) for n in "abcd"]
    assert untuned(runs) == 0.3 and best_undefended(runs).name == "c"
    assert best_undefended([summarise(RunFolder(base / "e"))]).name == "e"  # null switches a defence off


def test_the_strongest_attack_is_never_chosen_on_the_evaluation_records(make):
    both = [attack("weak", auroc=0.6, strongest=False), attack("lucky", auroc=0.9, strongest=False)]
    run = summarise(make("unmarked", {30: 0.3}, both))
    assert run.strongest() is None
    assert any("no attack was chosen on fit data" in c for c in caveats([run]))
    chosen = [attack("weak", auroc=0.6, fit_auroc=0.8), attack("lucky", auroc=0.9, fit_auroc=0.6)]
    fitted = [replace(a, strongest=False) for a in chosen]
    assert summarise(make("fitted", {30: 0.3}, fitted)).strongest().attack == "weak"


def test_what_spoils_a_comparison_is_said(make, runs):
    said = " ".join(caveats(runs))
    assert "5 split seeds" in said and "different splits" not in said and "does not measurably leak" not in said
    other = summarise(make("other", {30: 0.28}, [attack(split_hash="cd" * 32, converged=False, notes=("a note",))] * 2))
    said = " ".join(caveats([*runs, other]))
    assert "different splits" in said and "did not converge" in said
    assert said.count("other: a note") == 1
    tight = summarise(make("tight", {0: 0.3, 30: 0.28}, [attack(auroc=0.55)]))
    assert "does not measurably leak" in " ".join(caveats([tight]))
    assert "no undefended run" in " ".join(caveats([runs[2]]))


def test_figures_show_every_run_and_the_frontier(runs):
    figure = privacy_utility_figure(runs)
    axes = figure.axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) == {"undefended, stopped earlier", "guessing", "untuned", "undefended", "smp"}
    frontier = axes.lines[0].get_xydata()
    path = [[0.2760, 0.6], [0.2735, 0.7], [0.2725, 0.8]]
    assert frontier.tolist() == [[0.2850, 0.5], *path]  # the untuned run is the same run, stopped before its first step
    other = [replace(runs[0], settings={"model": "another"}), *runs[1:]]
    assert privacy_utility_figure(other).axes[0].lines[0].get_xydata().tolist() == path
    roc = roc_figure(runs).axes[0]
    assert (roc.get_xscale(), roc.get_yscale()) == ("log", "log")
    assert len(roc.lines) == 4  # three runs and guessing
    assert roc.lines[1].get_xdata()[0] > 0
    assert loss_figure(runs).axes[0].get_legend_handles_labels()[1] == ["undefended", "smp"]
    assert to_svg(figure).startswith("<svg")


def test_nothing_to_draw_is_no_figure(make):
    run = [summarise(make("bare", {}))]
    assert (roc_figure(run), privacy_utility_figure(run), loss_figure(run)) == (None, None, None)
    assert "bare" in render(run, "t")


def test_the_page_is_self_contained_and_escapes(runs, make):
    hostile = make("x", {30: 0.3}, [attack(notes=("<script>alert(1)</script>",))])
    hostile.pictures.mkdir()
    (hostile.pictures / "grid.png").write_bytes(PIXEL)
    page = render([*runs, summarise(hostile)], "A <b>title</b>")
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>title" not in page
    assert "data:image/png;base64," + base64.b64encode(PIXEL).decode() in page
    links = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "0.580 [0.500, 0.660]" in page and "5 split seeds" in page and "too few" in page


def test_compare_and_report_from_the_command_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "notes.txt").write_text("a file that runs/* brings along")
    paths = sorted(str(p) for p in (tmp_path / "runs").iterdir())
    assert main(["compare", *paths, "--html", "out.html"]) == 0
    out = capsys.readouterr().out
    assert "0.580 [0.500, 0.660]" in out and "5 split seeds" in out and "out.html" in out
    assert "<svg" in (tmp_path / "out.html").read_text()
    assert main(["report", "runs/smp"]) == 0
    assert "smp" in (tmp_path / "runs/smp/report.html").read_text()
    assert main(["compare", "nowhere"]) == 1
    assert "nowhere is no folder" in capsys.readouterr().err


def test_without_matplotlib_the_remedy_is_named(runs, monkeypatch):
    import sys

    from lightning_privacy.errors import InputError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"lightning-privacy\[report\]"):
        roc_figure(runs)
