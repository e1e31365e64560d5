"""What the papers on shadow attacks report holds here as well; minutes, so run by `make slow`."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "shadow_attacks.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("shadow_attacks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = str(tmp_path_factory.mktemp("shadows"))
    return script.main(["--data", "digits", "--shadows", "64", "--seeds", "0", "1", "2", "--folder", folder])


@pytest.mark.slow
def test_online_lira_finds_more_members_at_a_low_false_positive_rate_than_one_threshold(report):
    difference = report["differences"]["lira_online - scaled_confidence"]["tpr_at_fpr_0.02"]
    assert difference["valid"] and difference["low"] > 0


@pytest.mark.slow
def test_rmia_beats_offline_lira_with_two_references(report):
    assert report["differences"]["rmia_offline_2 - lira_offline_2"]["auroc"]["low"] > 0
