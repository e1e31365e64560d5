"""Every registered audit against its contract."""

import pytest

from lightning_privacy.core.registry import audit_names
from lightning_privacy.testing.contract_audits import AUDIT_CHECKS, audit_case_of, check_audit_on_ranks
from lightning_privacy.testing.settings import AUDITS

# Audits also look at models without any defence, on data of the lock audit too.
pytestmark = pytest.mark.filterwarnings("ignore:LockedDataModule shows the model pictures edited")


@pytest.mark.parametrize("check", AUDIT_CHECKS)
@pytest.mark.parametrize("name", audit_names())
def test_contract(name, check, tmp_path):
    AUDIT_CHECKS[check](audit_case_of(name), tmp_path)


@pytest.mark.dist
@pytest.mark.parametrize("name", audit_names())
def test_ranks(name, tmp_path, rank_pool):
    check_audit_on_ranks(audit_case_of(name), tmp_path, rank_pool)


def test_settings_name_registered_audits_alone():
    assert set(AUDITS) <= set(audit_names())
