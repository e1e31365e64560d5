"""What people decide beside the rules: a waiver lets a model past one blocking rule, never past missing evidence."""

from datetime import date

import pytest

from lightning_privacy.cli.main import main
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.decisions import PeopleDecisions, SignOff, Waiver, load_decisions
from lightning_privacy.report.dossier.html import render_html
from lightning_privacy.report.dossier.model_card import render_model_card
from lightning_privacy.report.dossier.models import AttackEntry, Claims, Evidence, Number, RecordSummary
from lightning_privacy.report.dossier.policy import load_policy
from lightning_privacy.report.dossier.verdict import decide
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

POLICY = load_policy("research-default")
TODAY = date(2026, 6, 1)


def evidence(auroc=0.7, **more):
    metrics = {
        "auroc": Number(value=auroc, low=auroc - 0.01, high=auroc + 0.01),
        "tpr_at_fpr_0.001": Number(value=0.002, low=0.001, high=0.003),
        **more.pop("metrics", {}),
    }
    n = {"member": 10_000, "holdout": 10_000}
    entry = AttackEntry(family="membership", name="a", access="loss", seed=0, step=1, n=n, metrics=metrics)
    records = RecordSummary(
        n_member=9, n_nonmember=9, id_source="test", attacks={}, flagging_attacks=["a", "b"],
        member_flag_counts=[9, 0, 0], nonmember_flag_counts=[9, 0, 0],
    )  # fmt: skip
    return Evidence(**{"attacks": [entry], "records": records, "generalisation_gap": Number(value=0.05), **more})


def people(rule="leak-on-average", **more):
    return PeopleDecisions(waivers=[Waiver(rule=rule, by="A. Person", reason="The data are public.", **more)])


def verdict(held, given=None):
    return decide(held, POLICY, people=given, today=TODAY)


def test_a_waived_rule_warns_and_never_clears():
    assert verdict(evidence()).verdict == "no_go"
    decided = verdict(evidence(), people())
    assert decided.verdict == "conditional"
    assert "waived by A. Person: The data are public. It warns only." in " ".join(decided.reasons)
    assert decided.waivers == people().waivers
    assert verdict(evidence(0.51), people()).verdict == "go"  # nothing to waive, nothing changed


def test_a_waiver_is_of_one_rule_and_ends():
    assert verdict(evidence(), people("leak-at-low-fpr")).verdict == "no_go"
    assert verdict(evidence(), people(until=TODAY)).verdict == "conditional"
    ended = verdict(evidence(), people(until=date(2026, 5, 31)))
    assert ended.verdict == "no_go" and "ended on 2026-05-31" in " ".join(ended.reasons)


def test_missing_evidence_cannot_be_waived():
    nothing = Number(value=None, valid=False, reason="too few records")
    held = evidence(metrics={"auroc": nothing, "tpr_at_fpr_0.001": nothing})
    given = PeopleDecisions(waivers=[*people().waivers, *people("leak-at-low-fpr").waivers])
    assert verdict(held, given).verdict == "insufficient_evidence"
    assert verdict(evidence(gaps=["x was not run"]), people()).verdict == "insufficient_evidence"


def test_a_refuted_claim_cannot_be_waived():
    with pytest.raises(InputError, match="withdraw the claim"):
        verdict(evidence(), people("claim-of-differential-privacy"))
    broken = evidence(0.51, metrics={"epsilon_lower": Number(value=9.0)}, claims=Claims(epsilon=1.0, source="test"))
    assert verdict(broken, people()).verdict == "no_go"


@pytest.mark.parametrize(
    ("rule", "words"), [("leak-on-averag", "does not have; it has"), ("overfitted", "only warns and blocks nothing")]
)
def test_a_waiver_of_what_cannot_be_waived_is_refused(rule, words):
    with pytest.raises(InputError, match=words):
        verdict(evidence(), people(rule))


@pytest.mark.parametrize(
    "text",
    ["waivers: [{rule: a, by: b}]", "waivers: [{rule: a, by: ' ', reason: c}]", "signof: []", "signoff: 3", "- 1"],
)
def test_a_mistake_in_the_file_is_named_with_what_there_is(tmp_path, text):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(InputError, match="`waivers` is a list of rule, by, reason"):
        load_decisions(tmp_path / "d.yaml")


def test_the_dossier_shows_who_decided_and_the_gate_asks_for_it_again(tmp_path, capsys):
    run = write_toy_run(tmp_path / "run", [toy_result("calibrated_loss", 0.8, strongest=True)])
    file = tmp_path / "d.yaml"
    file.write_text(
        "waivers: [{rule: leak-on-average, by: <b>Ann</b>, reason: public data, until: 2999-01-01}]\n"
        "signoff: [{by: Bob, role: data officer, 'on': 2026-05-01, statement: Seen and agreed.}]\n"
    )
    dossier = build_dossier(run, POLICY, people=load_decisions(file)).dossier
    signed = SignOff(by="Bob", role="data officer", on=date(2026, 5, 1), statement="Seen and agreed.")
    assert dossier.decision.signoff == [signed]
    page = render_html(dossier)
    assert "<b>Ann</b>" not in page and "Signed by Bob, data officer, on 2026-05-01" in page
    assert "Signed by Bob" in render_model_card(dossier)
    assert main(["dossier", str(run.path), "--policy", "sacro-compat", "--decisions", str(file)]) == 1
    assert "does not have" in capsys.readouterr().err  # a waiver is of a rule of the policy in force
    assert main(["dossier", str(run.path), "--decisions", str(file)]) == 0
    capsys.readouterr()
    written = str(run.path / "dossier" / "dossier.json")
    codes = [main(["gate", written, *more]) for more in ([], ["--decisions", str(file)])]
    assert codes[0] == 20 and codes[1] in (10, 30)


def test_slices_and_parents_reach_the_page(tmp_path):
    auroc = {"value": 0.9, "low": 0.7, "high": 0.97, "valid": True, "reason": ""}
    row = {"by": "class", "value": "7", "n": {"member": 20, "holdout": 30}, "auroc": auroc, "level": 0.99}
    result = toy_result("calibrated_loss", 0.8, strongest=True)
    result.extra["slices"] = [row]
    weights = tmp_path / "secret-folder" / "base.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    settings = {"model": {"class_path": "ImageClassifier", "init_args": {"pretrained": str(weights)}}}
    run = write_toy_run(tmp_path / "run", [result], settings)
    dossier = build_dossier(run, POLICY).dossier
    (found,) = dossier.attacks[0].slices
    assert (found.by, found.value, found.auroc.level) == ("class", "7", 0.99)
    (parent,) = dossier.parents
    assert parent.name == "base.safetensors" and parent.sha256.startswith("9a1290")
    page = render_html(dossier)
    assert "class 7" in page and "base.safetensors" in page
    result.extra["slices"] = [{**row, "auroc": 3}]
    with pytest.raises(InputError, match="The `slices` of the attack `calibrated_loss`"):
        build_dossier(write_toy_run(tmp_path / "other", [result], settings), POLICY)
