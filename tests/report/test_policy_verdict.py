"""The verdict: every branch as a decision table, and that neither worse numbers nor missing evidence ever help."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import AttackEntry, Claims, Evidence, Measurement, Number, RecordSummary
from lightning_privacy.report.dossier.newcombe import newcombe_difference
from lightning_privacy.report.dossier.observe import auroc_p_value, run_number
from lightning_privacy.report.dossier.policy import Policy, Rule, load_policy
from lightning_privacy.report.dossier.verdict import EXIT_CODES, ORDER, decide, strongest

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


def records(members=20, nonmembers=20):
    return RecordSummary(
        n_member=100, n_nonmember=100, id_source="test", attacks={}, flagging_attacks=["a", "b"],
        member_flag_counts=[100 - members, 0, members], nonmember_flag_counts=[100 - nonmembers, 0, nonmembers],
    )  # fmt: skip


def evidence(*attacks, **more):
    fields = {"attacks": list(attacks), "records": records(), "generalisation_gap": Number(value=0.05)}
    return Evidence(**{**fields, **more})


def with_metric(entry, name, **changes):
    changed = entry.metrics[name].model_copy(update=changes)
    return entry.model_copy(update={"metrics": {**entry.metrics, name: changed}})


CLAIM = Claims(epsilon=8.0, delta=1e-5, source="test")
INVALID = {"valid": False, "reason": "too few"}

TABLE = {
    "all within their limits": (evidence(attack()), "go", []),
    "a second attack too": (evidence(attack("a"), attack("b")), "go", []),
    "AUROC's upper end in the warning range": (evidence(attack(auroc=0.545)), "conditional", ["some-leak"]),
    "AUROC shown in the warning range": (evidence(attack(auroc=0.58)), "conditional", ["some-leak"]),
    "AUROC's upper end alone beyond the block": (
        evidence(attack(auroc=0.595)),
        "no_go",
        ["Not shown to be safe", "no leak is shown"],
    ),
    "AUROC shown beyond the block": (evidence(attack(auroc=0.7)), "no_go", ["Shown to leak", "a leak is shown"]),
    "low FPR shown": (evidence(attack(tpr=0.05)), "no_go", ["Shown to leak: TPR at 0.1 % FPR"]),
    "low FPR not excluded": (evidence(attack(tpr=0.0095)), "no_go", ["Not shown to be safe: TPR"]),
    "one of two attacks leaks": (evidence(attack("a"), attack("b", auroc=0.7)), "no_go", ["`b`"]),
    "no attack": (evidence(), "insufficient_evidence", ["No attack was run"]),
    "an attack of another family alone": (
        evidence(attack(family="inversion")),
        "insufficient_evidence",
        ["no membership attack"],
    ),
    "low FPR invalid": (
        evidence(with_metric(attack(), "tpr_at_fpr_0.001", **INVALID)),
        "insufficient_evidence",
        ["too few"],
    ),
    "low FPR invalid, AUROC blocks": (
        evidence(with_metric(attack(auroc=0.7), "tpr_at_fpr_0.001", **INVALID)),
        "no_go",
        ["Shown to leak: AUROC", "No valid evidence"],
    ),
    "an invalid number beyond the limit does not block": (
        evidence(with_metric(attack(tpr=0.5), "tpr_at_fpr_0.001", **INVALID)),
        "insufficient_evidence",
        ["too few"],
    ),
    "a metric absent": (
        evidence(attack(metrics={"auroc": number(0.5)})),
        "insufficient_evidence",
        ["gives no tpr_at_fpr_0.001", "it gives auroc"],
    ),
    "a null": (
        evidence(with_metric(attack(), "auroc", value=None, **INVALID)),
        "insufficient_evidence",
        ["AUROC of `a`"],
    ),
    "no interval": (
        evidence(with_metric(attack(), "auroc", low=None, high=None)),
        "insufficient_evidence",
        ["no interval"],
    ),
    "no interval, and the estimate beyond": (
        evidence(with_metric(attack(auroc=0.7), "auroc", low=None, high=None)),
        "no_go",
        ["the estimate is beyond"],
    ),
    "unconverged within the limits": (
        evidence(attack(converged=False)),
        "insufficient_evidence",
        ["did not converge"],
    ),
    "unconverged beyond the block": (
        evidence(attack(auroc=0.7, converged=False)),
        "no_go",
        ["Shown to leak", "a longer fit might find more"],
    ),
    "unconverged beyond the warning": (
        evidence(attack(auroc=0.58, converged=False)),
        "insufficient_evidence",
        ["did not converge"],
    ),
    "failed": (evidence(attack(failed="out of memory")), "insufficient_evidence", ["failed (out of memory)"]),
    "failed beside one that passes": (
        evidence(attack("a"), attack("b", failed="x", metrics={})),
        "insufficient_evidence",
        ["`b`"],
    ),
    "no attack knows the defence": (
        evidence(attack(), gaps=["The defence `d` was not attacked by one that knows it."]),
        "insufficient_evidence",
        ["The defence `d`"],
    ),
    "no attack knows the defence, and a leak": (
        evidence(attack(auroc=0.7), gaps=["The defence `d` was not attacked."]),
        "no_go",
        ["Shown to leak", "The defence `d`"],
    ),
    "generalisation gap": (evidence(attack(), generalisation_gap=Number(value=0.2)), "conditional", ["eneralisation gap"]),
    "generalisation gap unknown": (evidence(attack(), generalisation_gap=None), "conditional", ["not both recorded"]),
    "records found by all": (evidence(attack(), records=records(50, 20)), "conditional", ["embers flagged by every"]),
    "as many non-members found by all": (evidence(attack(), records=records(50, 50)), "go", []),
    "no record scores": (evidence(attack(), records=None), "insufficient_evidence", ["kept the scores"]),
    "claim unbroken": (evidence(attack(epsilon=2.0), claims=CLAIM), "go", []),
    "claim broken": (evidence(attack(epsilon=9.0), claims=CLAIM), "no_go", ["Claim refuted", "epsilon 8"]),
    "claim untested": (evidence(attack(), claims=CLAIM), "insufficient_evidence", ["bounds epsilon from below"]),
    "one of two attacks gives no bound": (
        evidence(attack("a"), attack("b", epsilon=2.0), claims=CLAIM),
        "insufficient_evidence",
        ["`a` gives no epsilon_lower"],
    ),
    "bound at a smaller delta": (
        evidence(attack(epsilon=9.0, settings={"delta": 1e-9}), claims=CLAIM),
        "insufficient_evidence",
        ["at the larger 1e-05"],
    ),
    "bound at a larger delta": (
        evidence(attack(epsilon=9.0, settings={"delta": 1e-4}), claims=CLAIM),
        "no_go",
        ["Claim refuted"],
    ),
    "no claim": (evidence(attack(epsilon=9.0)), "go", []),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_every_branch_of_the_default_policy(case):
    held, verdict, words = TABLE[case]
    decision = decide(held, DEFAULT)
    said = " ".join([decision.summary, *decision.reasons])
    assert decision.verdict == verdict, said
    assert [w for w in words if w not in said] == []
    assert bool(decision.reasons) == (verdict != "go")


def test_exit_codes_tell_the_verdicts_from_errors():
    assert EXIT_CODES == {"go": 0, "conditional": 10, "no_go": 20, "insufficient_evidence": 30}
    assert set(ORDER) == set(EXIT_CODES)


def policy(*rules, **more):
    base = {"id": "r", "metric": "auroc", "threshold": 0.6, "severity": "block", "origin": "test"}
    return Policy(name="t", version=1, rules=[Rule(**{**base, **r}) for r in rules], **more)


def test_a_broken_claim_blocks_whatever_the_policy():
    broken = evidence(attack(epsilon=9.0, family="leakage"), attack("b"), claims=CLAIM)
    lax = policy({"metric": "auroc", "threshold": 0.99, "severity": "warn"})
    assert decide(broken, lax).verdict == "no_go"
    warned = policy({"metric": "epsilon_lower", "threshold": "claimed_epsilon", "severity": "warn", "use": "point"})
    assert decide(broken, warned).verdict == "no_go"
    named = policy({"metric": "epsilon_lower", "threshold": "claimed_epsilon", "use": "point", "attacks": ["b"]})
    assert decide(broken, named).verdict == "no_go"
    assert len([r for r in decide(broken, DEFAULT).reasons if "Claim refuted" in r]) == 1
    invalid = evidence(
        attack(metrics={"auroc": number(0.5), "epsilon_lower": Number(value=9.0, **INVALID)}), claims=CLAIM
    )
    assert decide(invalid, lax).verdict == "insufficient_evidence"  # no refutation, but not the end of the doubt either


def test_the_strongest_attack_is_that_of_fit_data_and_never_the_largest_number():
    only = policy({"attacks": "strongest"})
    chosen = evidence(attack("a", strongest=True), attack("lucky", auroc=0.9))
    assert decide(chosen, only).verdict == "go"
    fitted = [attack("a", fit_auroc=0.7, auroc=0.9), attack("b", fit_auroc=0.6)]
    assert strongest(fitted).name == "a" and decide(evidence(*fitted), only).verdict == "no_go"
    unmarked = evidence(attack("a"), attack("b"))
    assert decide(unmarked, only).verdict == "insufficient_evidence"


def test_named_attacks_must_have_run_and_must_exist():
    named = policy({"attacks": ["lira", "a"]})
    held = evidence(attack("a"), attack("b", auroc=0.9))
    decision = decide(held, named, known_attacks=["lira"])
    assert decision.verdict == "insufficient_evidence" and "`lira` was not run" in decision.reasons[0]
    with pytest.raises(InputError, match=r"`r` names the unknown attack `lira`. There are a, b"):
        decide(held, named)
    assert decide(held, policy({"attacks": ["a"]})).verdict == "go"
    required = policy({"attacks": ["a"]}, required_attacks=["lira"])
    assert decide(held, required, ["lira"]).verdict == "insufficient_evidence"
    with pytest.raises(InputError, match="required_attacks"):
        decide(held, required)


@pytest.mark.parametrize("auroc", [0.5, 0.7])
def test_an_unconverged_attack_never_counts_as_a_mere_warning(auroc):
    warned = policy({"severity": "warn"})
    assert decide(evidence(attack(auroc=auroc, converged=False)), warned).verdict == "insufficient_evidence"
    assert decide(evidence(attack(auroc=auroc)), warned).verdict == ("conditional" if auroc > 0.6 else "go")


def test_utility_is_held_against_its_lower_end():
    rule = policy({"metric": "utility/accuracy", "op": "<", "threshold": 0.8, "use": "lower_ci"})
    for value, half, verdict, word in (
        (0.9, 0.05, "go", ""),
        (0.82, 0.05, "no_go", "Not shown to be useful enough"),
        (0.7, 0.05, "no_go", "Shown to fall short"),
    ):
        measured = [Measurement(kind="utility", name="accuracy", number=number(value, half), step=3)]
        decision = decide(evidence(attack(), measurements=measured), rule)
        assert decision.verdict == verdict and word in " ".join(decision.reasons)
    assert "there are: none" in decide(evidence(attack()), rule).reasons[0]


@pytest.mark.parametrize(
    ("auroc", "n", "verdict"),
    [
        (0.51, 100, "go"),
        (0.70, 10, "go"),  # not significant: p = 0.065
        (0.60, 200, "conditional"),  # significant, not above 0.65
        (0.66, 200, "no_go"),
        (0.64, 200, "conditional"),  # though its upper end is above 0.65
    ],
)
def test_sacro_compat_rejects_a_significant_auroc_above_its_limit(auroc, n, verdict):
    held = evidence(attack(auroc=auroc, n={"member": n, "holdout": n}, metrics={"auroc": number(auroc, 0.02)}))
    assert decide(held, SACRO).verdict == verdict


def test_p_values_and_intervals_agree_with_independent_sources():
    from scipy.stats import mannwhitneyu

    high, low = [0.3, 0.9, 1.4, 2.2, 2.8, 3.1, 4.0], [0.1, 0.2, 0.8, 1.1, 1.9, 2.5]
    auroc = roc_auc_score([1] * 7 + [0] * 6, high + low)
    oracle = mannwhitneyu(high, low, alternative="greater", method="asymptotic", use_continuity=False).pvalue
    assert auroc_p_value(auroc, 7, 6) == pytest.approx(oracle)
    # Newcombe 1998, table II, method 10
    assert newcombe_difference((56, 48), (70, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe_difference((9, 3), (10, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe_difference((5, 0), (56, 29)) == pytest.approx((-0.0381, 0.1926), abs=5e-5)
    assert newcombe_difference((10, 0), (10, 20)) == pytest.approx((0.6791, 1.0), abs=5e-5)
    found = run_number(evidence(attack(), records=records(50, 20)), "members_flagged_by_all_excess")
    assert found.value == pytest.approx(30) and found.low > 0


EVERYTHING = policy(
    {"id": "low-fpr", "metric": "tpr_at_fpr_0.001", "threshold": 0.01},
    {"id": "auroc", "metric": "auroc", "threshold": 0.6, "use": "lower_ci"},
    {"id": "warned", "metric": "auroc", "threshold": 0.55, "severity": "warn"},
    {"id": "top", "metric": "auroc", "threshold": 0.58, "attacks": "strongest", "use": "point", "severity": "warn"},
    {"id": "sacro", "metric": "auroc_if_significant", "threshold": 0.65, "use": "point"},
    {"id": "share", "metric": "share_of_significant_attacks", "threshold": 0.5, "use": "point", "severity": "warn"},
    {"id": "claim", "metric": "epsilon_lower", "threshold": "claimed_epsilon", "use": "point", "severity": "warn"},
    {"id": "gap", "metric": "generalisation_gap", "threshold": 0.1, "use": "point", "severity": "warn",
     "missing": "conditional"},
    {"id": "all", "metric": "members_flagged_by_all_excess", "threshold": 0, "use": "lower_ci", "severity": "warn"},
    required_attacks=["a", "b"],
)  # fmt: skip
POLICIES = st.sampled_from([DEFAULT.model_copy(update={"required_attacks": ["a", "b"]}), EVERYTHING])
AUROCS = st.sampled_from([0.3, 0.5, 0.52, 0.545, 0.57, 0.595, 0.62, 0.66, 0.8])
TPRS = st.sampled_from([0.0, 0.002, 0.0095, 0.02, 0.3])


@st.composite
def evidences(draw, clean=False):
    entries = []
    for name in "ab":
        entry = attack(
            name,
            auroc=draw(AUROCS),
            tpr=draw(TPRS),
            epsilon=draw(st.sampled_from([None, 0.5, 7.9, 8.1])),
            strongest=name == "a",
            converged=clean or draw(st.sampled_from([True, True, False])),
            failed="" if clean else draw(st.sampled_from(["", "", "crashed"])),
            settings=draw(st.sampled_from([{}, {"delta": 1e-9}, {"delta": 1e-5}])),
            n=draw(st.sampled_from([{"member": 30, "holdout": 30}, {"member": 10_000, "holdout": 10_000}])),
        )
        for metric in ("auroc", "tpr_at_fpr_0.001"):
            if not clean and draw(st.sampled_from([False, False, True])):
                entry = with_metric(entry, metric, **draw(st.sampled_from([INVALID, {"low": None, "high": None}])))
        entries.append(entry)
    return evidence(
        *entries,
        records=draw(st.sampled_from([records(20, 20), records(40, 20), None])),
        claims=draw(st.sampled_from([None, CLAIM])),
        generalisation_gap=draw(st.sampled_from([None, Number(value=0.05), Number(value=0.3)])),
    )


def worse(draw, held):
    """Raise one risk number, or its upper end alone, somewhere."""
    part = draw(st.sampled_from(["attack", "gap", "records"]))
    up = draw(st.sampled_from([0.001, 0.03, 0.1, 1.0]))
    if part == "gap" and held.generalisation_gap is not None:
        raised = held.generalisation_gap.model_copy(update={"value": held.generalisation_gap.value + up})
        return held.model_copy(update={"generalisation_gap": raised})
    if part == "records" and held.records is not None:
        more = records(held.records.member_flag_counts[-1] + 30, held.records.nonmember_flag_counts[-1])
        return held.model_copy(update={"records": more})
    place = draw(st.integers(0, len(held.attacks) - 1))
    entry = held.attacks[place]
    name = draw(st.sampled_from(sorted(entry.metrics)))
    before = entry.metrics[name]
    ends = ["high"] if draw(st.booleans()) and before.high is not None else ["value", "low", "high"]
    changes = {k: getattr(before, k) + up for k in ends if getattr(before, k) is not None}
    attacks = [*held.attacks[:place], with_metric(entry, name, **changes), *held.attacks[place + 1 :]]
    return held.model_copy(update={"attacks": attacks})


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rules=POLICIES)
def test_a_worse_number_never_improves_the_verdict(data, rules):
    held = data.draw(evidences())
    worsened = worse(data.draw, held)
    before, after = (decide(e, rules, "ab").verdict for e in (held, worsened))
    assert ORDER.index(after) >= ORDER.index(before)


def less(draw, held):
    """Remove one piece of evidence somewhere."""
    part = draw(
        st.sampled_from(["records", "gap", "all attacks", "attack", "metric", "interval", "valid", "fit", "run"])
    )
    if part == "records":
        return held.model_copy(update={"records": None})
    if part == "gap":
        return held.model_copy(update={"generalisation_gap": None})
    if part == "all attacks":
        return held.model_copy(update={"attacks": []})
    place = draw(st.integers(0, len(held.attacks) - 1))
    entry = held.attacks[place]
    name = draw(st.sampled_from(sorted(entry.metrics)))
    metrics = {k: v for k, v in entry.metrics.items() if k != name}
    changed = {
        "attack": [],
        "metric": [entry.model_copy(update={"metrics": metrics})],
        "interval": [with_metric(entry, name, low=None, high=None)],
        "valid": [with_metric(entry, name, **INVALID)],
        "fit": [entry.model_copy(update={"converged": False})],
        "run": [entry.model_copy(update={"failed": "crashed"})],
    }[part]
    return held.model_copy(update={"attacks": [*held.attacks[:place], *changed, *held.attacks[place + 1 :]]})


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rules=POLICIES)
def test_removing_evidence_never_releases(data, rules):
    held = data.draw(evidences(clean=data.draw(st.booleans())))
    lessened = less(data.draw, held)
    before, after = (decide(e, rules, "ab").verdict for e in (held, lessened))
    assert before == "go" or after != "go"
