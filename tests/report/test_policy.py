"""Release policies: what a file may say, and that each mistake in one is named."""

import pytest
import yaml

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.metric_names import metric_label
from lightning_privacy.report.dossier.policy import load_policy, policy_names
from lightning_privacy.report.dossier.wording import rule_text

RULE = {"id": "a", "metric": "auroc", "threshold": 0.6, "severity": "block", "origin": "chosen for this test"}


def write(tmp_path, rules=(RULE,), **more):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "version": 1, "rules": [dict(r) for r in rules], **more}))
    return path


def test_the_shipped_policies_load_and_say_where_each_limit_comes_from():
    assert policy_names() == ["research-default", "sacro-compat"]
    for name in policy_names():
        policy = load_policy(name)
        assert policy.name == name
        assert all("no standard exists" in r.origin or "claim" in r.origin for r in policy.rules)


def test_research_default_has_the_limits_that_it_documents():
    rules = {(r.metric, r.severity): r for r in load_policy("research-default").rules}
    assert rules["tpr_at_fpr_0.001", "block"].threshold == 0.01
    assert rules["auroc", "block"].threshold == 0.60 and rules["auroc", "warn"].threshold == 0.55
    assert rules["epsilon_lower", "block"].threshold == "claimed_epsilon"
    assert rules["generalisation_gap", "warn"].threshold == 0.10
    gated = [r for r in rules.values() if r.severity == "block" and r.metric != "epsilon_lower"]
    assert all(r.use == "upper_ci" and r.op == ">" for r in gated)
    assert rule_text(rules["auroc", "block"]) == "block if the upper end of AUROC, of any membership attack, is > 0.6"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "aurocc"}, ["rule `a`", "`aurocc`", "auroc", "tpr_at_fpr_<rate>", "generalisation_gap"]),
        ({"metric": "tpr_at_fpr_2"}, ["`tpr_at_fpr_2`", "between 0 and 1"]),
        ({"metric": "speed/seconds"}, ["`speed/seconds`", "utility, quality, cost or privacy"]),
        ({"attacks": "strongst"}, ["rule `a`", "attacks", "`strongst`", "`all`, `strongest`, or a list"]),
        ({"attacks": []}, ["`a`", "selects no attack"]),
        ({"metric": "generalisation_gap", "attacks": "all"}, ["`a`", "of the run", "remove `attacks`"]),
        ({"op": "=>"}, ["rule `a`", "op", "'>', '>=', '<' or '<='", "`=>`"]),
        ({"use": "upper"}, ["rule `a`", "use", "'upper_ci', 'lower_ci' or 'point'"]),
        ({"severity": "stop"}, ["severity", "'block' or 'warn'", "`stop`"]),
        ({"limit": 1}, ["unknown key `limit`", "rule `a`", "threshold", "severity"]),
        ({"family": "membrship"}, ["`membrship`", "membership", "inversion"]),
        ({"threshold": float("inf")}, ["rule `a`", "threshold"]),
        ({"threshold": "claimed_epsilon"}, ["auroc with the claimed epsilon", "epsilon_lower"]),
        ({"metric": "epsilon_lower", "attacks": "strongest"}, ["every bound of epsilon counts"]),
        ({"missing": "conditional"}, ["`a`", "blocks", "cannot be `conditional`"]),
        ({"threshold": True}, ["rule `a`", "threshold", "not true or false"]),
        ({"use": "lower_ci"}, ["`a`", "the lower end by `>`", "`use: upper_ci`"]),
        ({"op": ">=", "use": "lower_ci"}, ["the lower end by `>=`"]),
        ({"metric": "utility/accuracy", "op": "<", "use": "upper_ci"}, ["the upper end by `<`", "`use: lower_ci`"]),
        ({"metric": "utility/a", "op": "<=", "use": "upper_ci", "severity": "warn"}, ["the upper end by `<=`"]),
        (
            {"metric": "epsilon_lower", "threshold": "claimed_epsilon", "op": "<", "use": "point"},
            ["bounds below the claimed epsilon"],
        ),
        ({"metric": "epsilon_lower", "threshold": "claimed_epsilon", "use": "lower_ci"}, ["`use: point`"]),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_what_there_is(tmp_path, changes, words):
    with pytest.raises(InputError) as refused:
        load_policy(write(tmp_path, [{**RULE, **changes}]))
    said = str(refused.value)
    assert "\n" not in said
    assert [w for w in words if w.lower() not in said.lower()] == []


@pytest.mark.parametrize("key", ["id", "metric", "threshold", "severity", "origin"])
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(InputError, match=f"`{key}` is missing"):
        load_policy(write(tmp_path, [{k: v for k, v in RULE.items() if k != key}]))


def test_a_mistake_in_the_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no policy `strict`.*research-default, sacro-compat"):
        load_policy("strict")
    with pytest.raises(InputError, match="`a` of the policy .* is there twice"):
        load_policy(write(tmp_path, [RULE, RULE]))
    with pytest.raises(InputError, match="rules"):
        load_policy(write(tmp_path, []))
    with pytest.raises(InputError, match="unknown key `rule` at rule; there are name, version"):
        load_policy(write(tmp_path, rule=1))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="no mapping"):
        load_policy(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("rules: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_policy(tmp_path / "torn.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "{id: a, metric: auroc, threshold: 0.1, threshold: 0.99, severity: block, origin: x}",
        "{id: a, metric: auroc, threshold: 0.1, severity: block, 'severity': warn, origin: x}",
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text):
    (tmp_path / "twice.yaml").write_text(f"name: a\nversion: 1\nrules: [{text}]")
    with pytest.raises(InputError, match="the key `(threshold|severity)` is there twice"):
        load_policy(tmp_path / "twice.yaml")


def test_a_warning_may_compare_the_end_that_shows_a_leak(tmp_path):
    assert load_policy(write(tmp_path, [{**RULE, "severity": "warn", "use": "lower_ci"}])).rules[0].use == "lower_ci"


def test_metrics_of_other_families_and_measurements_may_be_named(tmp_path):
    rules = [
        {**RULE, "metric": "psnr", "family": "inversion"},
        {**RULE, "id": "b", "metric": "utility/accuracy", "op": "<", "use": "lower_ci"},
        {**RULE, "id": "c", "metric": "ppv_at_prior_0.01", "attacks": ["lira"]},
    ]
    assert load_policy(write(tmp_path, rules)).rules[0].metric == "psnr"
    assert metric_label("tpr_at_fpr_0.05") == "TPR at 5 % FPR"
    assert metric_label("ppv_at_prior_0.1") == "PPV at a prior of 10 %"
