"""What may not be got round: broken claims, failed and required attacks, intervals and counts that say too little."""

import pytest

from lightning_privacy.report.dossier.models import AttackEntry, Claims, Evidence, Measurement, Number
from lightning_privacy.report.dossier.observe import auroc_p_value, smallest_p_value
from lightning_privacy.report.dossier.policy import Policy, Rule, load_policy
from lightning_privacy.report.dossier.verdict import decide

DEFAULT = load_policy("research-default")
SACRO = load_policy("sacro-compat")


def number(value, half=0.01, **more):
    return Number(**{"value": value, "low": value - half, "high": value + half, **more})


def attack(name="a", auroc=0.51, tpr=0.002, epsilon=None, **more):
    metrics = {"auroc": number(auroc), "tpr_at_fpr_0.001": number(tpr, 0.001)}
    if epsilon is not None:
        metrics["epsilon_lower"] = Number(value=epsilon)
    fields = {"family": "membership", "name": name, "access": "loss", "seed": 0, "step": 1, "metrics": metrics}
    return AttackEntry(**{**fields, "n": {"member": 10_000, "holdout": 10_000}, **more})


def evidence(*attacks, **more):
    return Evidence(**{"attacks": list(attacks), "generalisation_gap": Number(value=0.05), **more})


def with_metric(entry, name, **changes):
    changed = entry.metrics[name].model_copy(update=changes)
    return entry.model_copy(update={"metrics": {**entry.metrics, name: changed}})


CLAIM = Claims(epsilon=8.0, delta=1e-5, source="test")
INVALID = {"valid": False, "reason": "too few"}


def policy(*rules, **more):
    base = {"id": "r", "metric": "auroc", "threshold": 0.6, "severity": "block", "origin": "test"}
    return Policy(name="t", version=1, rules=[Rule(**{**base, **r}) for r in rules], **more)


def claim_rule(**changes):
    return policy({"metric": "epsilon_lower", "threshold": "claimed_epsilon", "use": "point", **changes})


@pytest.mark.parametrize(
    "rules",
    [
        claim_rule(op="<"),
        claim_rule(use="lower_ci"),
        claim_rule(op="<=", attacks="all"),
        claim_rule(attacks=["b"]),
        claim_rule(severity="warn", missing="conditional", id="broken-claim"),
    ],
)
def test_no_rule_of_a_policy_switches_the_broken_claim_off(rules):
    bound = Number(value=9.0, low=0.0, high=9.0)
    broken = attack(family="canary", metrics={"epsilon_lower": bound})
    held = evidence(broken, attack("b", epsilon=0.5), claims=CLAIM)
    decision = decide(held, rules)
    assert decision.verdict == "no_go"
    assert [(f.attack, f.outcome) for f in decision.findings if f.rule == "broken-claim" and f.severity == "block"] == [
        ("a", "shown")
    ]


@pytest.mark.parametrize(
    "bound",
    [
        {"settings": {"delta": 0.0}},
        {"failed": "crashed later"},
        {"metrics": {"auroc": number(0.5), "epsilon_lower": Number(value=9.0, **INVALID)}},
    ],
)
@pytest.mark.parametrize("missing", ["insufficient_evidence", "conditional"])
def test_a_bound_above_the_claim_that_does_not_count_leaves_it_in_doubt(bound, missing):
    rules = policy(
        {"severity": "warn"}, {"id": "broken-claim", "threshold": 0.99, "severity": "warn", "missing": missing}
    )
    held = evidence(attack(**{"epsilon": 9.0, **bound}), claims=CLAIM)
    decision = decide(held, rules)
    assert decision.verdict == "insufficient_evidence"
    below = evidence(attack(**{"epsilon": 9.0, **bound}), claims=CLAIM.model_copy(update={"epsilon": 10.0}))
    assert not [f for f in decide(below, rules).findings if f.threshold == 10.0]


def test_a_broken_claim_is_found_once_where_the_policy_says_the_same():
    broken = evidence(attack(epsilon=9.0), claims=CLAIM)
    assert [f.rule for f in decide(broken, DEFAULT).findings if f.outcome == "shown"] == [
        "claim-of-differential-privacy"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"failed": "out of memory"}, "requires the attack `b`, which failed (out of memory)"),
        ({"converged": False}, "requires the attack `b`, which did not converge"),
        ({"metrics": {}}, "requires the attack `b`, which gave no valid number"),
        ({"metrics": {"auroc": Number(value=0.5, **INVALID)}}, "requires the attack `b`, which gave no valid number"),
    ],
)
def test_a_required_attack_that_says_nothing_is_missing(changes, words):
    rules = policy({"attacks": ["a"]}, required_attacks=["b"])
    assert decide(evidence(attack("a"), attack("b")), rules).verdict == "go"
    decision = decide(evidence(attack("a"), attack("b", **changes)), rules)
    assert decision.verdict == "insufficient_evidence" and words in " ".join(decision.reasons)


@pytest.mark.parametrize("selected", ["strongest", ["a"]])
def test_a_failed_attack_that_no_rule_selects_is_missing_all_the_same(selected):
    held = evidence(attack("a", strongest=True), attack("b", failed="CUDA error", metrics={}))
    decision = decide(held, policy({"attacks": selected}))
    assert decision.verdict == "insufficient_evidence" and "`b` failed (CUDA error)" in decision.reasons[0]
    other = evidence(attack("a"), attack("b", family="inversion", failed="CUDA error"))
    measured = policy({"metric": "generalisation_gap", "use": "point"})
    assert decide(other, measured).verdict == "insufficient_evidence"


def test_an_interval_of_less_than_95_percent_clears_nothing():
    narrow = with_metric(attack(), "auroc", level=0.5)
    decision = decide(evidence(narrow), policy({}))
    assert decision.verdict == "insufficient_evidence" and "covers 50 % and not 95 %" in decision.reasons[0]
    assert decide(evidence(with_metric(attack(), "auroc", level=0.99)), policy({})).verdict == "go"


@pytest.mark.parametrize(
    "n", [{}, {"member": 10}, {"member": 0, "holdout": 10}, {"member": 10, "val": 3, "holdout": 9}]
)
def test_a_membership_attack_must_say_on_how_many_records_it_was_judged(n):
    decision = decide(evidence(attack(n=n)), policy({}))
    assert decision.verdict == "insufficient_evidence" and "how many members and non-members" in decision.reasons[0]
    inverted = policy({"metric": "psnr", "family": "inversion", "threshold": 30})
    other = attack("i", family="inversion", n=n, metrics={"psnr": number(10.0)})
    assert decide(evidence(attack(), other), inverted).verdict == "go"


def test_the_default_end_of_the_interval_speaks_against_the_model():
    base = {"id": "r", "metric": "auroc", "threshold": 0.6, "severity": "block", "origin": "test"}
    found = {op: Rule(**base, op=op).use for op in (">", ">=", "<", "<=")}
    assert found == {">": "upper_ci", ">=": "upper_ci", "<": "lower_ci", "<=": "lower_ci"}
    wide = [Measurement(kind="utility", name="accuracy", number=number(0.5, 0.4), step=3)]
    demanded = policy({"metric": "utility/accuracy", "op": "<", "threshold": 0.8})
    assert decide(evidence(attack(), measurements=wide), demanded).verdict == "no_go"


@pytest.mark.parametrize(
    ("n", "verdict"), [((1, 1), None), ((3, 3), None), ((19, 1), None), ((4, 4), "go"), ((21, 2), "go")]
)
def test_sacro_compat_clears_nothing_on_too_few_records_for_any_attack(n, verdict):
    held = evidence(attack(auroc=0.5, n=dict(zip(("member", "holdout"), n, strict=True))))
    decision = decide(held, SACRO)
    assert decision.verdict == (verdict or "insufficient_evidence")
    assert ("even a perfect attack is not significant" in " ".join(decision.reasons)) == (verdict is None)


def test_the_smallest_p_value_is_that_of_the_exact_test():
    from scipy.stats import mannwhitneyu

    for n, m in ((3, 3), (2, 9), (1, 19), (5, 4)):
        high, low = list(range(100, 100 + n)), list(range(m))
        exact = mannwhitneyu(high, low, alternative="greater", method="exact").pvalue
        assert smallest_p_value(n, m) == pytest.approx(max(exact, auroc_p_value(1.0, n, m)))
    assert smallest_p_value(100_000, 100_000) < 1e-9
