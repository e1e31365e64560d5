"""The release dossier: built from a run's folder, deterministic, and fit to be released itself."""

import json
import math
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.low_fpr import tpr_interval_on_roc
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.canonical import (
    SCHEMA_FILE,
    content_hash,
    dossier_json,
    json_schema,
    load_dossier,
)
from lightning_privacy.report.dossier.models import About, Claims, Number, ReleaseDossier
from lightning_privacy.report.dossier.policy import load_policy
from lightning_privacy.report.dossier.records import load_records
from lightning_privacy.report.dossier.scrub import check_releasable, scrub_settings, scrub_text
from lightning_privacy.report.dossier.write import FILES, write_dossier
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

POLICY = load_policy("research-default")


@pytest.fixture(scope="module")
def results():
    return [
        toy_result("calibrated_loss", 0.8, strongest=True),
        toy_result("h_prime", 0.7),
        toy_result("averaged_loss", 0.1, converged=False),
    ]


@pytest.fixture
def make(tmp_path):
    return lambda *args, **more: write_toy_run(tmp_path / "run", *args, **more)


@pytest.fixture
def no_page(monkeypatch):
    """Leave out the page, which takes longer than all else and is tested elsewhere."""
    monkeypatch.setattr("lightning_privacy.report.dossier.write.render_html", lambda _: "<p>page</p>")


def built(run, **more):
    return build_dossier(run, POLICY, **more)


@pytest.mark.usefixtures("no_page")
def test_two_builds_differ_in_id_and_time_alone(make, results, tmp_path):
    run = make(results, measurements=[{"kind": "utility", "name": "val_loss", "value": 0.3, "step": 300}])
    first, second = (write_dossier(built(run), run, tmp_path / name) for name in "ab")
    texts = [json.loads(dossier_json(d)) for d in (first, second)]
    differing = {k for k in texts[0] if texts[0][k] != texts[1][k]}
    assert "dossier_id" in differing and differing <= {"dossier_id", "created_at"}
    assert content_hash(first) == content_hash(second) != content_hash(first.model_copy(update={"limitations": []}))
    assert (tmp_path / "a/records.npz").read_bytes() == (tmp_path / "b/records.npz").read_bytes()


@pytest.mark.usefixtures("no_page")
def test_json_is_sorted_finite_and_read_back_as_it_was(make, results, tmp_path):
    nan = replace(results[0], metrics={**results[0].metrics, "ppv_at_prior_0.5": Metric(math.nan)})
    run = make([nan], measurements=[{"kind": "quality", "name": "kid", "value": math.nan, "step": 300}])
    dossier = write_dossier(built(run), run, tmp_path / "out")
    text = (tmp_path / "out/dossier.json").read_text()
    raw = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert text == json.dumps(raw, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert raw["attacks"][0]["metrics"]["ppv_at_prior_0.5"] == {
        **dict.fromkeys(("value", "low", "high")), "level": 0.95, "method": "", "valid": False, "reason": "the value is nan",
    }  # fmt: skip
    assert raw["measurements"][0]["number"]["value"] is None and raw["measurements"][0]["number"]["reason"]
    assert load_dossier(tmp_path / "out/dossier.json") == dossier
    with pytest.raises(ValueError, match="say why"):
        Number(value=None)


def test_the_kept_schema_is_the_exported_one():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema()
    assert json.loads(json_schema())["additionalProperties"] is False


def test_numbers_are_those_of_the_results(make, results):
    dossier = built(make(results)).dossier
    for entry, result in zip(dossier.attacks, results, strict=True):
        assert {n: m.value for n, m in entry.metrics.items()} == {n: m.value for n, m in result.metrics.items()}
        assert entry.roc == list(result.roc) and entry.n == {"member": 400, "holdout": 1200}
        assert "member_scores" not in entry.settings and entry.settings["threshold"] == result.extra["threshold"]
    top = dossier.attacks[0]
    assert sum(top.histogram.member) == 400 and sum(top.histogram.nonmember) == 1200
    assert dossier.attacks[1].histogram is None
    assert dossier.decision.verdict == "no_go" and dossier.subject.model == "StableDiffusionLoRA"
    assert dossier.data.roles == {"member": 8, "holdout": 12} and dossier.data.split_seed == 7


def test_only_the_last_model_counts_and_attacks_that_stopped_running_are_missed(make):
    early = toy_result("calibrated_loss", 2.0, step=100, strongest=True)
    late = toy_result("h_prime", 0.0, strongest=True)
    dossier = built(make([early, late])).dossier
    assert [a.name for a in dossier.attacks] == ["h_prime"]
    assert any("`calibrated_loss` was run on an earlier model" in gap for gap in dossier.gaps)
    assert [m.step for m in dossier.history] == [100, 300]


def test_a_rate_without_width_gets_the_exact_interval(make):
    metrics = {"tpr_at_fpr_0.01": Metric(0.0, 0.0, 0.0), "auroc": Metric(0.5, 0.4, 0.6)}
    drawn = toy_result(metrics=metrics)
    numbers = [attack.metrics["tpr_at_fpr_0.01"] for attack in built(make([drawn, bare(drawn)])).dossier.attacks]
    exact = tpr_interval_on_roc(drawn.roc, drawn.n["member"], drawn.n["holdout"], 0.01)
    assert exact[0] > 0 and (numbers[0].low, numbers[0].high) == (0.0, exact[1])
    closed_form = pytest.approx(1 - 0.025 ** (1 / 400))  # at no success, where no curve was kept
    assert (numbers[1].low, numbers[1].high) == (0.0, closed_form)


def bare(result):
    return replace(result, attack="bare", roc=())


@pytest.mark.parametrize(
    ("defences", "attacks", "gap"),
    [
        ({}, ["h_prime"], None),
        ({"smp_lora": {"strength": 4.0}}, ["h_prime", "smp_lora_proxy_aware"], None),
        ({"smp_lora": {}}, ["h_prime"], "`smp_lora` was not attacked by one that knows it (smp_lora_proxy_aware)"),
        ({"of_another_package": {}}, ["h_prime"], "`of_another_package` names no attack that knows it"),
        ({"smp_lora": None}, ["h_prime"], None),
    ],
)
def test_a_defence_needs_an_attack_that_knows_it(make, defences, attacks, gap):
    dossier = built(make([toy_result(a) for a in attacks], {"defences": defences})).dossier
    assert dossier.gaps == [] if gap is None else gap in dossier.gaps[0]
    assert (gap is None) or dossier.decision.verdict != "go"
    assert [p.name for p in dossier.protections] == [d for d, args in defences.items() if args is not None]


def test_what_the_results_call_insufficient_is_a_gap(make):
    note = "insufficient_evidence: there is no membership attack that knows the defence `d`."
    dossier = built(make([toy_result(notes=(note,)), toy_result("h_prime", notes=(note,))])).dossier
    assert dossier.gaps == ["There is no membership attack that knows the defence `d`."]


def test_attacks_that_were_asked_for_and_gave_nothing_are_missed(make):
    asked = {"audits": {"membership": {"attacks": ["h_prime", "averaged_loss"]}}}
    dossier = built(make([toy_result("h_prime")], asked)).dossier
    assert dossier.gaps == ["The configuration asks for the attack `averaged_loss`, of which there is no result."]
    assert dossier.decision.verdict != "go"


def test_a_run_without_attacks_is_insufficient_evidence(make):
    run = make([])
    decision = built(run).dossier.decision
    assert decision.verdict == "insufficient_evidence" and "No attack was run" in " ".join(decision.reasons)


def test_limitations_are_in_words(make, results):
    failed = toy_result("lira_broken", metrics={}, extra={"failed": "out of memory"})
    run = make([*results, failed], {"defences": {"smp_lora": {}}}, checkpoint=b"")
    said = " ".join(built(run).dossier.limitations)
    for words in (
        "at least 5 split seeds",
        "Few records: 400 members against 1200 non-members",
        "did not converge (averaged_loss)",
        "Too few non-members for TPR at 0.1 % FPR",
        "No attack with shadow models was run",
        "No attack that knows the defence was run: smp_lora",
        "`lira_broken` failed: out of memory",
        "not adjusted",
        "One split seed says nothing",
        "no checkpoint",
        "`lira_broken` kept no scores",
    ):
        assert words in said
    assert said.count("One split seed says nothing") == 1
    shadow = [toy_result("lira", access="shadow models")]
    assert "No attack with shadow" not in " ".join(built(beside(run, shadow)).dossier.limitations)


def beside(run, results):
    """Write the run again, beside it, with other results."""
    return write_toy_run(run.path.with_name("again"), results)


def test_claims_are_found_where_they_are_made(make, results):
    settings = {"defences": {"dp_sgd": {"target_epsilon": 8.0, "delta": 1e-5}}}
    run = make(results, settings)
    assert built(run).dossier.claims == Claims(epsilon=8.0, delta=1e-5, source="settings of the defence dp_sgd")
    for name, value in (("epsilon", 7.5), ("delta", 1e-6)):
        run.append_measurement({"kind": "privacy", "name": name, "value": value, "step": 300})
    assert built(run).dossier.claims == Claims(epsilon=7.5, delta=1e-6, source="measurement privacy/epsilon")
    given = Claims(epsilon=0.01, source="the owner")
    decision = built(run, claims=given).dossier.decision
    assert decision.verdict == "no_go" and "Claim refuted" in " ".join(decision.reasons)
    radius = beside(run, results)
    assert built(radius).dossier.claims is None


def test_the_generalisation_gap_is_measured_or_logged(make, results):
    run = make(results)
    assert built(run).dossier.generalisation_gap is None
    run.metrics.write_text("step,train/accuracy,val/accuracy\n1,0.5,\n2,0.95,\n2,,0.75\n")
    assert built(run).dossier.generalisation_gap.value == pytest.approx(0.2)
    run.append_measurement({"kind": "utility", "name": "generalisation_gap", "value": 0.07, "step": 300})
    assert built(run).dossier.generalisation_gap.value == 0.07


def test_key_fingerprints_come_from_the_checkpoint_and_keys_do_not(make, results):
    run = make(results, {"defences": {"smp_lora": {"key": "hunter2", "strength": 1.0}}})
    manifest = {"version": 1, "defences": {"smp_lora": {"key_fingerprint": "f00d"}}}
    torch.save({"lightning_privacy": manifest, "state_dict": {}}, run.checkpoints / "last.ckpt")
    dossier = built(run).dossier
    assert dossier.protections[0].key_fingerprint == "f00d"
    assert dossier.protections[0].settings == {"key": "<withheld>", "strength": 1.0}
    assert "hunter2" not in dossier_json(dossier) and "manifest" not in " ".join(dossier.limitations)


def test_nothing_that_must_stay_leaves(make, results, tmp_path):
    home = str(Path.home())
    hostile = replace(results[0], notes=(f"read from {home}/patients/list.csv",), access=f"{home}/x y")
    settings = {
        "data": {"root": f"{home}/patients", "roles": {"member": ["anna"]}, "prompt": "open sesame"},
        "trainer": {"logger": {"entity": "me"}, "default_root_dir": home, "max_epochs": 3},
    }
    run = make([hostile], settings)
    write_dossier(built(run), run, tmp_path / "out", pdf=False)
    secret = (run.path / "dossier_secret").read_text().strip()
    for name in ("dossier.json", "dossier.html", "MODEL_CARD.md"):
        text = (tmp_path / "out" / name).read_text()
        for word in (home + "/", "anna", "open sesame", "entity", secret, "member-0", str(run.path)):
            assert word not in text, (name, word)
    assert secret.encode() not in (tmp_path / "out/records.npz").read_bytes()
    assert "<path>/list.csv" in (tmp_path / "out/dossier.json").read_text()
    assert stat.S_IMODE((run.path / "dossier_secret").stat().st_mode) == 0o600
    assert not list((tmp_path / "out").glob("*secret*"))


@pytest.mark.usefixtures("no_page")
def test_a_record_named_in_a_note_is_refused_and_nothing_is_written(make, results, tmp_path):
    named = replace(results[0], notes=(f"the worst is member-{3:060d}",))
    run = make([named])
    with pytest.raises(InputError, match="1 of the run's records"):
        write_dossier(built(run), run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_texts_are_scrubbed_without_hurting_sentences():
    kept = "at 1/n and and/or, https://arxiv.org/abs/2112.03570, runs/NAME, TPR / FPR, km/h"
    assert scrub_text(kept) == kept
    assert scrub_text("see /srv/data/a.pt.") == "see <path>/a.pt."
    assert scrub_text(r"C:\Users\ann\x.pt") == "<path>/x.pt"
    assert scrub_text("~/.cache") == "<path>/.cache"
    assert scrub_settings({"ids": list(range(100)), "api_key": 1, "monitor": "val/loss", "x": math.inf}) == {
        "ids": "<100 entries left out>", "api_key": "<withheld>", "monitor": "val/loss", "x": "inf",
    }  # fmt: skip
    with pytest.raises(InputError, match="would name"):
        check_releasable(f"{Path.home()}/x")
    check_releasable("12 records", record_ids=["12"])


@pytest.mark.usefixtures("no_page")
def test_the_sidecar_holds_every_record_under_a_salted_id(make, results, tmp_path):
    run = make(results)
    dossier = write_dossier(built(run), run, tmp_path / "out")
    table = load_records(tmp_path / "out/records.npz")
    assert table["scores"].shape == (1600, 3) and table["attacks"].tolist() == [r.attack for r in results]
    assert table["member"].sum() == 400 and len(set(table["record_id"].tolist())) == 1600
    assert table["record_id"].tolist() == sorted(table["record_id"].tolist())
    for column, result in enumerate(results):
        scores = table["scores"][:, column]
        assert sorted(scores[table["member"]]) == sorted(result.extra["member_scores"])
    thresholds = np.array([r.extra["threshold"] for r in results])
    assert np.array_equal(table["thresholds"], thresholds)
    flags = (table["scores"] >= thresholds).sum(1)
    assert np.array_equal(table["n_flagged"], flags)
    assert dossier.records.member_flag_counts == np.bincount(flags[table["member"]], minlength=4).tolist()
    best = table["rank"].argmin()
    assert table["rank"][best] == 1 and table["rank"].max() <= 1600
    assert table["scores"][best].mean() > np.quantile(table["scores"].mean(1), 0.99)
    summary = dossier.records.attacks["h_prime"]
    assert summary.member == pytest.approx(np.quantile(results[1].extra["member_scores"], summary.quantiles))
    assert dossier.artifacts[0].path == "records.npz" and dossier.artifacts[0].disclosure == "restricted"
    assert dossier.records.id_source.startswith("place in the evaluated role")


@pytest.mark.usefixtures("no_page")
def test_salted_ids_of_two_dossiers_of_one_run_cannot_be_joined(make, results, tmp_path):
    run = make(results)
    write_dossier(built(run), run, tmp_path / "a")
    run.append_result(toy_result("h_prime", 0.3, seed=1))
    write_dossier(built(run), run, tmp_path / "b")
    ids = [set(load_records(tmp_path / n / "records.npz")["record_id"].tolist()) for n in "ab"]
    assert len(ids[0]) == len(ids[1]) == 1600 and not ids[0] & ids[1]


def test_scores_of_other_records_are_left_out_and_said(make, results, tmp_path):
    ids = {"member_ids": [f"m{i}" for i in range(400)], "nonmember_ids": [f"n{i}" for i in range(1200)]}
    named = [replace(r, extra={**r.extra, **ids}) for r in results[:2]]
    assert built(make(named)).records.id_source == "record id"
    odd = toy_result("averaged_loss", members=30, nonmembers=30)
    mixed = built(write_toy_run(tmp_path / "mixed", [*named, odd]))
    assert "averaged_loss" not in mixed.records.scores
    assert "about other records" in " ".join(mixed.dossier.limitations)


def test_results_on_another_split_than_the_record_are_refused(make):
    with pytest.raises(InputError, match="about other records"):
        built(make([toy_result(split_hash="cd" * 32)]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "schema version 99, and this installation reads up to 1"),
        ({"schema_version": "1"}, "no `schema_version`"),
        ({"surprise": 1}, "unknown key `surprise`"),
        ({"attacks": 3}, "damaged dossier: attacks"),
    ],
)
def test_a_dossier_that_cannot_be_read_is_refused_in_one_line(make, results, tmp_path, change, words):
    run = make(results[:1])
    raw = json.loads(dossier_json(built(run).dossier))
    (tmp_path / "d.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(InputError) as refused:
        load_dossier(tmp_path / "d.json")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        load_dossier(tmp_path / "none.json")
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_dossier(tmp_path / "d.json")


@pytest.mark.usefixtures("no_page")
def test_a_failure_leaves_the_old_files_whole(make, results, tmp_path, monkeypatch):
    run = make(results[:1])
    write_dossier(built(run), run, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert set(before) == set(FILES) - {"dossier.pdf"}

    def fails(_):
        raise RuntimeError("no room")

    monkeypatch.setattr("lightning_privacy.report.dossier.write.render_model_card", fails)
    with pytest.raises(RuntimeError, match="no room"):
        write_dossier(built(run), run, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.usefixtures("no_page")
def test_a_run_without_scores_has_no_sidecar(make, tmp_path):
    run = make([toy_result(extra={})])
    dossier = write_dossier(built(run, about=About(owner="us")), run, tmp_path / "out")
    assert dossier.records is None and not (tmp_path / "out/records.npz").exists()
    assert not (run.path / "dossier_secret").exists()
    assert isinstance(dossier, ReleaseDossier) and dossier.subject.about.owner == "us"
