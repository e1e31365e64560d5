import json
import pickle

import numpy as np
import pytest

from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError
from lightning_privacy.interop import read_report

ID = "4e9b5db3-f93f-43dc-9a67-1035a68b892a"


def section(version, instances, name="LiRA Attack", **metadata):
    about = {"attack_name": name, "attack_params": {"output_dir": "out"}, "global_metrics": {}, **metadata}
    if version is not None:
        about["sacroml_version"] = version
    numbered = {f"instance_{k}": instance for k, instance in enumerate(instances)}
    logged = {"attack_experiment_logger": {"attack_instance_logger": numbered}}
    return {"log_id": ID, "log_time": "05/11/2025 16:55:01", "metadata": about, **logged}


def write(folder, *sections):
    named = {f"{s['metadata']['attack_name']}_{k}": s for k, s in enumerate(sections)}
    (folder / "report.json").write_text(json.dumps(named))
    return folder


OLD = {"TPR": 0.76, "TNR": 0.51, "FPR": 0.49, "AUC": 0.75, "P_HIGHER_AUC": 0.0, "TPR@0.1": 0.43, "TPR@0.001": 0.02}
OLD |= {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.7, 1.0], "n_pos_test_examples": 398, "n_neg_test_examples": 171}
NEW = {"TPR": 0.7, "TNR": 0.6, "AUC": 0.71, "ACC": 0.65, "Advantage": 0.3, "TPR@0.5%": 0.2, "TPR@0.1%": 0.1}
NEW |= {"TPR@1e-05%": 0.05, "n_pos_test_examples": 300, "n_neg_test_examples": 12000}


def test_version_1_writes_rates(tmp_path):
    (found,) = read_report(write(tmp_path, section("1.4.0", [OLD])))
    assert (found.family, found.attack, found.access) == ("membership", "sacro_lira", "class scores, and shadow models")
    assert found.metrics["tpr_at_fpr_0.1"].value == 0.43 and found.metrics["tpr_at_fpr_0.1"].valid
    assert found.metrics["tpr_at_fpr_0.001"].value == 0.02
    assert not found.metrics["tpr_at_fpr_0.001"].valid and "10000 needed" in found.metrics["tpr_at_fpr_0.001"].reason
    assert found.metrics["auroc"].value == 0.75 and found.metrics["balanced_accuracy"].value == pytest.approx(0.635)
    assert found.n == {"member": 398, "holdout": 171} and found.created == "2025-11-05T16:55:01"
    assert found.roc == ((0, 0), (0.5, 0.7), (1, 1)) and "1.4.0" in found.notes[0]


def test_version_2_writes_percentages(tmp_path):
    (found,) = read_report(write(tmp_path, section("2.0.1", [NEW])))
    rates = {name: each.value for name, each in found.metrics.items() if name.startswith("tpr_at")}
    assert rates == {"tpr_at_fpr_0.005": 0.2, "tpr_at_fpr_0.001": 0.1, "tpr_at_fpr_1e-07": 0.05}
    assert found.metrics["tpr_at_fpr_0.001"].valid and not found.metrics["tpr_at_fpr_1e-07"].valid
    assert found.metrics["advantage"].value == 0.3 and found.metrics["auroc"].low is None


def test_a_result_goes_into_a_runs_file_and_back(tmp_path):
    (found,) = read_report(write(tmp_path, section("2.0.1", [NEW])))
    assert AttackResult.from_json(found.to_json()) == found


def test_arrays_beside_the_report_give_curve_and_scores(tmp_path):
    arrays = {"fpr": np.linspace(0, 1, 1001), "tpr": np.linspace(0, 1, 1001) ** 0.5}
    arrays |= {"individual.member_prob": np.array([0.9, 0.7, 0.2]), "individual.member": np.array([1, 0, 0])}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    (found,) = read_report(write(tmp_path, section("2.0.1", [{**NEW, "arrays_file": "a.npz"}])))
    assert len(found.roc) == 200 and found.roc[-1] == (1, 1)
    assert found.extra["member_scores"] == [0.9] and found.extra["nonmember_scores"] == [0.7, 0.2]
    assert found.extra["threshold"] == 0.5


def test_margins_that_are_called_probabilities_have_their_cut_at_zero(tmp_path):
    individual = {"member_prob": [3.5, -2.0], "member": [1, 0]}
    (found,) = read_report(write(tmp_path, section("2.0.1", [{**NEW, "individual": individual}], name="QMIA Attack")))
    assert found.attack == "sacro_qmia" and found.extra["threshold"] == 0 and found.extra["member_scores"] == [3.5]


def test_missing_arrays_are_told(tmp_path):
    (found,) = read_report(write(tmp_path, section("2.0.1", [{**NEW, "arrays_file": "gone.npz"}])))
    assert found.roc == () and any("gone.npz, are missing" in note for note in found.notes)


def test_pickled_arrays_are_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "a.npz", fpr=np.array([Trap()], dtype=object))
    report = write(tmp_path, section("2.0.1", [{**NEW, "arrays_file": "a.npz"}]))
    with pytest.raises(InputError, match="no .npz of plain numbers"):
        read_report(report)
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="no .npz of plain numbers"):
        read_report(report)
    assert not (tmp_path / "sprung").exists()


def test_arrays_elsewhere_are_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    np.savez(tmp_path / "a.npz", fpr=np.zeros(2))
    report = write(tmp_path / "inner", section("2.0.1", [{**NEW, "arrays_file": "../a.npz"}]))
    with pytest.raises(InputError, match="must lie beside it"):
        read_report(report)


def test_repetitions_are_averaged(tmp_path):
    two = section("2.0.1", [{**NEW, "AUC": 0.6}, {**NEW, "AUC": 0.8, "TPR@0.1%": None}], name="WorstCase attack")
    (found,) = read_report(write(tmp_path, two))
    assert found.attack == "sacro_worstcase" and found.metrics["auroc"].value == pytest.approx(0.7)
    assert "tpr_at_fpr_0.001" not in found.metrics
    assert any("2 repetitions" in note for note in found.notes) and any("TPR@0.1%" in note for note in found.notes)


def test_two_sections_of_one_name_do_not_hide_each_other(tmp_path):
    found = read_report(write(tmp_path, section("2.0.1", [NEW]), section("1.4.0", [OLD])))
    assert [each.attack for each in found] == ["sacro_lira", "sacro_lira_2"]


def test_other_attacks_are_named_and_left_out(tmp_path):
    structural = section("2.0.1", [{"dof_risk": True}], name="Structural Attack")
    failed = {**section("2.0.1", [], name="QMIA Attack"), "status": "failed", "fail_reason": "degenerate"}
    (found,) = read_report(write(tmp_path, structural, section("2.0.1", [NEW]), failed))
    assert "Structural Attack, QMIA Attack (degenerate)" in found.notes[-1]
    with pytest.raises(InputError, match="no membership attack with an AUC \\(only Structural Attack\\)"):
        read_report(write(tmp_path, structural))


def test_the_layout_with_catalogues_is_read(tmp_path):
    inner = {"LiRA Attack_1": section("2.0.1", [NEW])}
    (tmp_path / "report.json").write_text(json.dumps({"schema_version": "1.2", "attacks": inner}))
    assert [each.attack for each in read_report(tmp_path)] == ["sacro_lira"]


@pytest.mark.parametrize("version", [None, "unknown", "", 2])
def test_a_version_that_cannot_be_told_is_one_clear_error(tmp_path, version):
    with pytest.raises(InputError, match=r"does not say which SACRO-ML wrote it .* 10 % before version 2"):
        read_report(write(tmp_path, section(version, [OLD])))


@pytest.mark.parametrize(("version", "numbers"), [("2.0.0", OLD), ("1.4.0", NEW)])
def test_a_version_against_its_keys_is_an_error(tmp_path, version, numbers):
    with pytest.raises(InputError, match="percent sign"):
        read_report(write(tmp_path, section(version, [numbers])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"LiRA', "is no JSON"),
        ("{}", "holds no attacks"),
        ("[1]", "holds no attacks"),
        ('{"a": 1}', "no `metadata`"),
        ('{"a": {"metadata": {}}}', "no membership attack"),
        ('{"a": {"metadata": {}, "attack_experiment_logger": {"attack_instance_logger": {"i": 1}}}}', "no mapping"),
    ],
)
def test_what_is_no_report_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_report(tmp_path)


def test_no_report_at_all_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_report(tmp_path)


@pytest.mark.parametrize("wrong", ["high", True, [0.5]])
def test_a_value_that_is_no_number_is_an_error(tmp_path, wrong):
    with pytest.raises(InputError, match="no number"):
        read_report(write(tmp_path, section("2.0.1", [{**NEW, "AUC": wrong}])))


def test_a_broken_section_of_our_own_is_an_error(tmp_path):
    broken = section("2.0.1", [NEW], lightning_privacy={"result": {"family": "membership"}})
    with pytest.raises(InputError, match="is not what that writes"):
        read_report(write(tmp_path, broken))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"n_pos_test_examples": "many"},
            "`n_pos_test_examples` of `LiRA Attack_0` is 'many', which is no number of records",
        ),
        ({"n_pos_test_examples": [1]}, "no number of records"),
        ({"n_pos_test_examples": True}, "no number of records"),
        ({"n_pos_test_examples": 1.5}, "no number of records"),
        ({"n_pos_test_examples": -5}, "is -5, which is no number of records"),
        ({"n_neg_test_examples": -5}, "`n_neg_test_examples` of `LiRA Attack_0` is -5"),
        ({"AUC": 7}, "`AUC` of `LiRA Attack_0` is 7, and can only lie between 0 and 1"),
        ({"AUC": -0.5}, "is -0.5, and can only lie between 0 and 1"),
        ({"Advantage": -2}, "can only lie between -1 and 1"),
        ({"TPR@0.1%": 1.5}, "`TPR@0.1%` of `LiRA Attack_0` is 1.5"),
        ({"TPR@1.2.3": 0.1}, "`TPR@1.2.3` of `LiRA Attack_0` names no false-positive rate"),
        ({"TPR@0%": 0.1}, "`TPR@0%` of `LiRA Attack_0` names no false-positive rate"),
        ({"TPR@200%": 0.1}, "names no false-positive rate"),
        (
            {"individual": {"member_prob": [0.1, 0.9], "member": [1, 5]}},
            "holds more than 1 for members and 0 for others",
        ),
        ({"fpr": [0, 2], "tpr": [0, 1]}, "rates outside"),
    ],
)
def test_numbers_that_cannot_be_are_one_clear_error(tmp_path, changes, words):
    with pytest.raises(InputError) as refused:
        read_report(write(tmp_path, section("2.0.1", [{**NEW, **changes}])))
    assert words in str(refused.value)


def test_a_report_nested_too_deeply_is_one_clear_error(tmp_path):
    (tmp_path / "report.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is no JSON"):
        read_report(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "single"])
def test_damaged_arrays_are_one_clear_error(tmp_path, damage):
    arrays = np.linspace(0, 1, 5000) ** 2
    np.savez_compressed(tmp_path / "a.npz", fpr=arrays, tpr=arrays)
    raw = (tmp_path / "a.npz").read_bytes()
    if damage == "single":
        with (tmp_path / "a.npz").open("wb") as file:
            np.save(file, arrays)
    else:
        spoilt = (
            raw[:300] + bytes(255 - b for b in raw[300:320]) + raw[320:] if damage == "flip" else raw[: len(raw) // 2]
        )
        (tmp_path / "a.npz").write_bytes(spoilt)
    with pytest.raises(InputError, match="no .npz of plain numbers"):
        read_report(write(tmp_path, section("2.0.1", [{**NEW, "arrays_file": "a.npz"}])))
