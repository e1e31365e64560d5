"""The dossier's section on a lock: UP, LP, gap, chance, what labels are worth, and of the key its fingerprint alone."""

import re
from dataclasses import replace

import pytest

from lightning_privacy.core.results import Metric
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.html import render_html
from lightning_privacy.report.dossier.lock_section import lock_section
from lightning_privacy.report.dossier.policy import load_policy
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

N = 80
SETTINGS = {"defences": {"model_lock": {"mode": "wrong_label", "negatives": ["raw", "wrong_key"]}}}
ATTACKS = {
    "no_key": 8,
    "value_order": 60,
    "fine_tune/10_labels": 20,
    "fine_tune/64_labels": 50,
    "head_tune/10_labels": 12,
    "head_tune/64_labels": 30,
}
REFERENCES = {"with_key": 72, "chance": 2, "scratch/10_labels": 10, "scratch/64_labels": 44}


def line(family, attack, right, **changes):
    low, high = clopper_pearson(right, N)
    metric = Metric(right / N) if attack == "chance" else Metric(right / N, float(low), float(high))
    made = replace(toy_result(), family=family, attack=attack, access="queries", n={"holdout": N}, roc=(), notes=())
    return replace(made, metrics={"accuracy": metric}, fit_auroc=None, extra={}, **changes)


def written(folder, *more, settings=SETTINGS):
    lines = [line("lock", name, right) for name, right in ATTACKS.items()]
    lines += [line("lock_reference", name, right) for name, right in REFERENCES.items()]
    best = replace(line("lock", "strongest", 60, strongest=True), extra={"chosen_attack": "value_order"})
    best = replace(best, notes=("This lock does not hold.",))
    run = write_toy_run(folder / "run", [*more, *lines, best], settings)
    return build_dossier(run, load_policy("research-default")).dossier


@pytest.fixture(scope="module")
def dossier(tmp_path_factory):
    return written(tmp_path_factory.mktemp("lock"))


def test_the_section_has_what_a_lock_is_judged_by(dossier):
    section = lock_section(dossier)
    rows = {name: number for name, number, _ in section.rows}
    assert list(rows) == ["UP", "LP", "gap", "chance", "strongest attack"]
    assert [rows[n].value for n in ("UP", "LP", "chance", "strongest attack")] == [0.9, 0.1, 0.025, 0.75]
    gap = rows["gap"]
    assert gap.value == pytest.approx(0.8) and 0.6 < gap.low < 0.8 < gap.high < 0.9
    assert section.mode == "wrong_label" and section.scored == "80 holdout"
    assert "the order of pixels solved from pairs (`value_order`)" in section.rows[-1][2]


def test_the_curves_go_over_the_number_of_labels(dossier):
    axes = lock_section(dossier).figure.axes[0]
    drawn = {each.get_label(): each for each in axes.lines}
    curve = drawn["all stolen weights fine-tuned"]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([10, 64], [0.25, 0.625])
    assert list(drawn["the same network without the stolen weights"].get_ydata()) == [0.125, 0.55]
    assert set(drawn) >= {"UP, with the key", "LP", "chance", "the stolen model's last layer trained"}


def test_the_page_shows_it_in_words(dossier):
    text = " ".join(re.sub(r"<[^>]+>", " ", render_html(dossier)).split())
    for words in (
        "The lock", "UP minus LP", "0.9 [0.812, 0.956]", "This lock does not hold.",
        "all stolen weights fine-tuned, 64 labelled pictures", "LP: raw pictures",
        "strongest attack without the key: the order of pixels solved from pairs",
    ):  # fmt: skip
        assert words in text, words
    assert "strongest (strongest)" not in text


def test_attacks_that_are_run_for_several_numbers_of_labels_count_as_run(dossier):
    lock = next(p for p in dossier.protections if p.name == "model_lock")
    assert set(lock.attacked) == {"value_order", "fine_tune", "head_tune"}


def test_of_the_key_only_the_fingerprint_is_shown(dossier):
    mark = "ab12" * 16
    told = [p.model_copy(update={"key_fingerprint": mark}) for p in dossier.protections]
    marked = dossier.model_copy(update={"protections": told})
    assert lock_section(marked).fingerprint == mark and f"fingerprint: <code>{mark}</code>" in render_html(marked)
    assert lock_section(dossier).fingerprint is None and "fingerprint" not in render_html(dossier).split("<details>")[0]


def test_without_a_lock_audit_there_is_no_section_and_without_a_lock_it_says_so(tmp_path):
    plain = build_dossier(write_toy_run(tmp_path / "plain"), load_policy("research-default")).dossier
    assert lock_section(plain) is None and "<h2>The lock</h2>" not in render_html(plain)
    unlocked = written(tmp_path, settings={})
    assert lock_section(unlocked).mode is None and "No lock was trained into this model" in render_html(unlocked)
