from dataclasses import dataclass

import pytest
import torch

from lightning_privacy.callbacks.audits.shadow_signals import with_shadows
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError


@dataclass
class Pool:
    record_ids: tuple
    confidence: torch.Tensor
    inside: torch.Tensor


POOL = Pool(("a", "b", "c"), torch.arange(12.0).view(3, 4, 1), torch.eye(3, 4).bool())


def test_rows_follow_the_records_and_not_the_pool():
    made = with_shadows({"holdout": Signals(("c", "a"))}, POOL)["holdout"]
    assert made.shadow_confidence[:, 0, 0].tolist() == [8.0, 0.0]
    assert made.shadow_in.tolist() == [[False, False, True, False], [True, False, False, False]]


def test_a_record_that_the_pool_does_not_know_is_refused():
    with pytest.raises(InputError, match="1 records of the role `val` are not in the pool"):
        with_shadows({"val": Signals(("a", "d"))}, POOL)
