import math

import numpy as np
import pytest

from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_metrics import auc_p_value, sacro_metrics, sacro_roc

PROB, MEMBER = np.array([0.1, 0.6, 0.2, 0.45, 0.9, 0.99]), np.array([0, 0, 0, 1, 1, 1])


def test_metrics_of_six_records_are_those_computed_by_hand():
    found = sacro_metrics(PROB, MEMBER)
    by_hand = {"TPR": 2 / 3, "FPR": 1 / 3, "FAR": 1 / 3, "TNR": 2 / 3, "PPV": 2 / 3, "NPV": 2 / 3, "FNR": 1 / 3}
    by_hand |= {"ACC": 4 / 6, "F1score": 2 / 3, "Advantage": 1 / 3, "AUC": 8 / 9}
    for name, value in by_hand.items():
        assert found[name] == pytest.approx(value, abs=2e-8), name
    assert (found["n_pos_test_examples"], found["n_neg_test_examples"]) == (3, 3)
    # ceil(0.1 * 6) = 1 record at each end: a member at the top, a non-member at the bottom.
    assert (found["FMAX01"], found["FMIN01"], found["FDIF01"]) == (1, 0, 1)
    # Under the null the difference has the variance 2 p (1 - p) / 1 = 1/2.
    tail = math.erfc(1 / math.sqrt(0.5) / math.sqrt(2)) / 2
    assert found["PDIF01"] == pytest.approx(-math.log(tail))


@pytest.mark.parametrize(("fpr", "tpr"), [(0.0, 2 / 3), (0.1, 2 / 3), (0.4, 1.0), (1.0, 1.0)])
def test_true_positive_rates_of_six_records(fpr, tpr):
    assert sacro_roc(PROB, MEMBER).tpr_at(fpr) == pytest.approx(tpr)


def test_keys_are_percentages():
    found = sacro_metrics(PROB, MEMBER)
    keys = [key for key in found if key.startswith("TPR@")]
    assert keys == ["TPR@0.5%", "TPR@0.2%", "TPR@0.1%", "TPR@0.01%", "TPR@0.001%", "TPR@1e-05%"]


def test_auc_has_no_evidence_at_one_half_and_overwhelming_evidence_at_one():
    assert auc_p_value(0.5, 10, 20) == 0.5
    assert auc_p_value(1.0, 100, 100) < 1e-15


def test_constant_scores_say_nothing_whatever_the_order_of_records():
    members_first = np.repeat([1, 0], [50, 50])
    found = sacro_metrics(np.full(100, 0.3), members_first)
    assert (found["AUC"], found["FDIF01"], found["FDIF02"]) == (0.5, 0, 0)
    assert found["TPR"] == found["FPR"] == found["PPV"] == 0


def test_a_false_alarm_at_the_top_allows_no_true_positive_at_a_low_rate():
    found = sacro_metrics(np.array([0.9, 0.8, 0.7, 0.1]), np.array([0, 1, 1, 0]))
    assert found["TPR@0.1%"] == 0


@pytest.mark.parametrize("member", [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
def test_one_side_alone_is_refused(member):
    with pytest.raises(InputError, match="members and non-members"):
        sacro_metrics(PROB, np.array(member))


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        sacro_metrics(np.append(PROB, wrong), np.append(MEMBER, 1))
