"""Rules on a configuration: each fires on what it is about and on nothing else; only a doomed run exits with 1."""

from dataclasses import replace

import pytest

from lightning_privacy.cli.ante_hoc_plan import TrainingPlan, plan_of, role_counts
from lightning_privacy.cli.ante_hoc_rules import RULES, judge
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.testing.toy_data import ToyImages

ROLES = {
    "member": 20_000,
    "aux_member": 10_000,
    "eval_member": 10_000,
    "attack_nonmember": 10_000,
    "aux_nonmember": 0,
    "val": 1000,
    "holdout": 10_000,
}
SOUND = TrainingPlan(
    epochs=30,
    records=50_000,
    roles=ROLES,
    batch_size=64,
    parameters=1000,
    weight_decay=5e-4,
    augment=True,
    split=True,
    audits={"membership": {"shadows": 64}},
)


def severity(plan, rule):
    return {f.id: f.severity for f in judge(plan)}[rule]


def test_a_sound_plan_draws_only_the_note_on_seeds():
    assert [f.id for f in judge(SOUND) if f.severity != "ok"] == ["one_split_seed"]


@pytest.mark.parametrize(
    ("rule", "change", "expected"),
    [
        ("no_audit", {"audits": {}}, "warn"),
        ("audit_without_split", {"split": False, "roles": {}}, "block"),
        ("no_evidence", {"roles": {**ROLES, "eval_member": 5, "holdout": 5}}, "block"),
        ("no_evidence", {"roles": {**ROLES, "eval_member": 6, "holdout": 6}}, "ok"),
        ("no_evidence", {"roles": {**ROLES, "attack_nonmember": 0}}, "block"),
        ("no_evidence", {"roles": {**ROLES, "holdout": None}}, "unknown"),
        ("low_fpr_unsupported", {"roles": {**ROLES, "holdout": 9_999}}, "warn"),
        ("low_fpr_unsupported", {"roles": {**ROLES, "holdout": None}}, "unknown"),
        ("shadow_count", {"audits": {"membership": {"shadows": 17}}}, "warn"),
        ("shadow_count", {"audits": {"membership": {"shadows": 8}}}, "warn"),
        ("shadow_count", {"audits": {"membership": {"shadows": 16}}}, "ok"),
        ("canaries", {"audits": {"canaries": {}}}, "block"),
        ("canaries", {"audits": {"canaries": {}}, "canaries": 5}, "block"),
        ("canaries", {"audits": {"canaries": {}}, "canaries": 6}, "ok"),
        ("canaries", {"canaries": 100}, "warn"),
        ("expected_memorisation", {"parameters": 10**6}, "note"),
        ("expected_memorisation", {"parameters": None}, "unknown"),
        ("no_regularisation", {"weight_decay": 0.0, "augment": False}, "warn"),
        ("no_regularisation", {"weight_decay": 0.0, "augment": False, "early_stopping": True}, "ok"),
        ("no_regularisation", {"weight_decay": None, "augment": False}, "unknown"),
        ("no_regularisation", {"weight_decay": 0.0, "augment": False, "epochs": 5}, "ok"),
        ("batch_of_one", {"batch_size": 1}, "warn"),
        ("batch_of_one", {"batch_size": None}, "unknown"),
        ("soft_labels", {"label_smoothing": 0.1}, "warn"),
        ("soft_labels", {"mixup": 0.2}, "note"),
        ("schedule_ends_at_zero", {"lr_scheduler": ("CosineAnnealingLR", {"T_max": 3})}, "note"),
        ("schedule_ends_at_zero", {"lr_scheduler": ("CosineAnnealingLR", {"eta_min": 1e-4})}, "ok"),
        ("pretrained_weights", {"pretrained": "DEFAULT"}, "note"),
    ],
)
def test_each_rule_fires_on_what_it_is_about(rule, change, expected):
    assert severity(replace(SOUND, **change), rule) == expected


def test_a_defence_without_an_attack_that_knows_it_is_named(fakes):
    plan = replace(SOUND, defences=(fakes.Louder(),))
    found = next(f for f in judge(plan) if f.id == "no_adaptive_attack")
    assert found.severity == "warn"
    assert "louder" in found.finding


def test_whatever_is_not_ok_says_why_and_what_to_do():
    plans = [TrainingPlan(), TrainingPlan(batch_size=1, audits={"canaries": {}}, label_smoothing=0.1, mixup=0.1)]
    for finding in (f for plan in plans for f in judge(plan)):
        assert finding.looked_at and finding.finding
        if finding.severity in ("block", "warn", "note"):
            assert finding.why and finding.remedy
    assert len(judge(TrainingPlan())) == len(RULES)


def test_planned_roles_are_those_that_the_split_draws():
    split = MembershipSplit(ToyImages(n=203), fractions={"holdout": 30, "val": 0.05})
    planned = role_counts(split, 203)
    split.setup("fit")
    drawn = {role: len(indices) for role, indices in split.roles.items()}
    drawn["eval_member"] = drawn["member"] - drawn["aux_member"]
    assert planned.keys() == drawn.keys()
    assert all(abs(planned[role] - n) <= 1 for role, n in drawn.items())


def test_given_roles_are_counted():
    given = {"member": [0, 1, 2, 3], "holdout": [4, 5]}
    counts = role_counts(MembershipSplit(ToyImages(n=8), roles=given), None)
    assert (counts["member"], counts["holdout"], counts["aux_member"], counts["eval_member"]) == (4, 2, 2, 2)


def test_the_verb_prints_findings_and_exits_zero_on_warnings(run, recipe, workspace):
    code, out, err = run("check", "--config", recipe, "--ante-hoc")
    assert code == 0, err
    assert "no_adaptive_attack" in out and "louder" in out
    assert "Every deep network has more weights" in out and "2212.01233" in out
    assert not (workspace / "runs").exists()


def test_without_the_flag_nothing_of_it_is_printed(run, recipe):
    code, out, _ = run("check", "--config", recipe)
    assert code == 0
    assert "Rules on the configuration" not in out


def test_a_doomed_run_is_stopped(run, write, monkeypatch):
    from lightning_privacy.callbacks.audits.membership import MembershipAudit
    from lightning_privacy.cli import privacy_cli

    privacy_cli.AUDITS.register("membership", MembershipAudit)
    inner = {"class_path": "lightning_privacy.testing.toy_data.ToyImages", "init_args": {"n": 40}}
    config = {
        "run_name": "doomed",
        "trainer": {"max_epochs": 50, "accelerator": "cpu"},
        "model": {"class_path": "Line"},
        "data": {"class_path": "lightning_privacy.datamodules.MembershipSplit", "init_args": {"inner": inner}},
        "audits": {"membership": {}},
    }
    code, out, err = run("check", "--config", write("fine.yaml", config), "--ante-hoc")
    assert code == 0, err + out
    assert "6 members against 8 non-members" in out
    assert "50 x 12 / 1 = 600" in out
    inner["init_args"]["n"] = 28
    code, out, _ = run("check", "--config", write("doomed.yaml", config), "--ante-hoc")
    assert code == 1
    assert "Do not start this run: no_evidence" in out.replace("\n", " ")
    code, out, _ = run("check", "--config", write("doomed.yaml", config), "--ante-hoc", "--records", "4000")
    assert code == 0
    code, _, _ = run("check", "--config", write("doomed.yaml", config))
    assert code == 0


def test_what_the_configuration_says_is_read(run, recipe):
    from lightning_privacy.cli.privacy_cli import PrivacyCLI

    cli = PrivacyCLI(["--config", recipe, "--trainer.accelerator", "cpu"], run=False)
    plan = plan_of(cli)
    assert (plan.epochs, plan.parameters, plan.records, plan.split) == (2, 1, 8, False)
    assert plan.audits.keys() == {"coin"}
    assert [d.name for d in plan.defences] == ["louder"]
