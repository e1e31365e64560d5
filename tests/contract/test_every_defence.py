"""Every registered defence, and one dummy a slot, against the contract."""

import pytest

from lightning_privacy.core.registry import defence_names
from lightning_privacy.testing.contract import CHECKS, case_of
from lightning_privacy.testing.contract_ranks import check_ranks
from lightning_privacy.testing.settings import DEFENCES, DUMMIES

# Runs without the defence, which these are compared with, see the same locked data.
pytestmark = pytest.mark.filterwarnings("ignore:LockedDataModule shows the model pictures edited")

NAMES = sorted({*defence_names(), *DUMMIES})


def _case(name):
    return DUMMIES[name] if name in DUMMIES else case_of(name)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, check, tmp_path):
    CHECKS[check](_case(name), tmp_path)


@pytest.mark.dist
@pytest.mark.parametrize("name", NAMES)
def test_ranks(name, tmp_path, rank_pool):
    check_ranks(_case(name), tmp_path, rank_pool)


def test_settings_name_registered_defences_alone():
    assert set(DEFENCES) <= set(defence_names())


def test_registered_names_are_the_classes_own():
    for name in defence_names():
        assert case_of(name).name == name
