import json
import math
import re

import numpy as np
import pytest

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.interop import read_report, write_report
from lightning_privacy.interop.sacro_report import member_probability


def sections(path):
    return list(json.loads(path.read_text()).values())


def instance(section):
    return section["attack_experiment_logger"]["attack_instance_logger"]["instance_0"]


def test_a_section_has_the_shape_of_sacro_2(tmp_path, make_result):
    path = write_report([make_result()], tmp_path)
    assert path == tmp_path / "report.json"
    ((key, section),) = json.loads(path.read_text()).items()
    assert key == f"rmia_online_{section['log_id']}" and re.fullmatch(r"[0-9a-f-]{36}", section["log_id"])
    assert re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d", section["log_time"])
    metadata = section["metadata"]
    assert metadata["sacroml_version"].startswith("2.") and metadata["attack_name"] == "rmia_online"
    assert metadata["attack_params"]["output_dir"] == tmp_path.as_posix()
    assert set(metadata["global_metrics"]) == {"PDIF_sig", "AUC_sig", "null_auc_3sd_range"}
    numbers = instance(section)
    assert {"TPR", "AUC", "P_HIGHER_AUC", "FDIF01", "TPR@0.1%", "n_pos_test_examples"} <= set(numbers)
    assert not {"fpr", "tpr", "roc_thresh"} & set(numbers)
    with np.load(tmp_path / numbers["arrays_file"], allow_pickle=False) as arrays:
        assert {"fpr", "tpr", "roc_thresh", "individual.member_prob", "individual.member"} <= set(arrays)
        assert arrays["individual.member_prob"].tolist() == numbers["individual"]["member_prob"]
        assert arrays["roc_thresh"][0] == 1


def test_records_are_inline_members_first_and_probabilities_keep_the_order_and_the_cut(tmp_path, make_result):
    result = make_result(members=20, nonmembers=25)
    individual = instance(sections(write_report([result], tmp_path))[0])["individual"]
    assert individual["member"] == [1] * 20 + [0] * 25
    score = np.array(result.extra["member_scores"] + result.extra["nonmember_scores"])
    prob = np.array(individual["member_prob"])
    assert ((prob > 0) & (prob < 1)).all()
    assert (np.argsort(prob) == np.argsort(score)).all()
    assert ((prob > 0.5) == (score > 0.5)).all()


def test_member_probability_rises_without_ties_where_a_logistic_function_rounds_to_one():
    scores = np.array([-np.inf, -1e6, 0.0, 40.0, 41.0, 1e6, np.inf])
    prob = member_probability(scores, 0.0, 1.0)
    assert (np.diff(prob) > 0).all() and prob[0] == 0 and prob[-1] == 1 and prob[2] == 0.5


def test_only_the_fittest_variant_of_lira_takes_sacros_name(tmp_path, make_result):
    names = {"lira_online": 0.6, "lira_offline": 0.7, "quantile_regression": 0.5, "rmia_online": 0.9}
    report = write_report([make_result(attack=name, fit_auroc=fit) for name, fit in names.items()], tmp_path)
    found = [section["metadata"]["attack_name"] for section in sections(report)]
    assert found == ["lira_online", "LiRA Attack", "QMIA Attack", "rmia_online"]


def test_our_results_come_back_as_they_went_in(tmp_path, make_result):
    results = [make_result(attack="lira_online"), make_result(seed=1)]
    write_report(results, tmp_path)
    assert read_report(tmp_path) == results
    assert read_report(tmp_path / "report.json") == results


def test_what_is_not_finite_is_null_and_comes_back(tmp_path, make_result):
    result = make_result(metrics={"auroc": Metric(math.nan, valid=False, reason="none")})
    result.extra["member_scores"][0] = math.inf
    path = write_report([result], tmp_path)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    own = sections(path)[0]["metadata"]["lightning_privacy"]["result"]
    assert own["metrics"]["auroc"]["value"] is None
    (back,) = read_report(path)
    assert math.isnan(back.metrics["auroc"].value)
    assert back.extra["member_scores"] == result.extra["member_scores"]


def test_all_but_ids_and_times_is_the_same_every_time(tmp_path, make_result):
    texts, arrays = [], []
    for _ in range(2):
        folder = tmp_path / "same"
        path = write_report([make_result()], folder)
        (section,) = sections(path)
        text = path.read_text().replace(section["log_id"], "ID").replace(section["log_id"][:8], "ID")
        texts.append(text.replace(section["log_time"], "TIME"))
        arrays.append((folder / instance(section)["arrays_file"]).read_bytes())
        for file in folder.iterdir():
            file.unlink()
    assert texts[0] == texts[1] and arrays[0] == arrays[1]


def test_a_report_that_is_there_is_added_to(tmp_path, make_result):
    write_report([make_result()], tmp_path)
    write_report([make_result(attack="lira_online")], tmp_path)
    assert [result.attack for result in read_report(tmp_path)] == ["rmia_online", "lira_online"]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_nothing_is_added_to_what_is_no_report(tmp_path, make_result, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="is there but is no"):
        write_report([make_result()], tmp_path)
    assert (tmp_path / "report.json").read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "inversion"}, "the family inversion"),
        ({"extra": {"threshold": 0.5}}, "lacks member_scores, nonmember_scores"),
        ({"extra": {"member_scores": [1.0], "nonmember_scores": [0.0]}}, "lacks threshold"),
        ({"extra": {"member_scores": [math.nan], "nonmember_scores": [0.0], "threshold": 0}}, "1 of them NaN"),
        ({"extra": {"member_scores": [], "nonmember_scores": [0.0], "threshold": 0}}, "0 and 1 scores"),
    ],
)
def test_what_cannot_be_reported_is_named_and_nothing_is_written(tmp_path, make_result, changes, message):
    with pytest.raises(InputError, match=message):
        write_report([make_result(), make_result(**changes)], tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_result_is_no_report(tmp_path):
    with pytest.raises(InputError, match="at least one"):
        write_report([], tmp_path)
