"""Every pair of defences either trains together or is refused with exactly the declared conflict."""

from itertools import combinations

import pytest
import torch

from lightning_privacy.core.conflicts import Environment, find_conflicts
from lightning_privacy.core.registry import defence_names
from lightning_privacy.errors import DefenceConflictError
from lightning_privacy.testing.contract import case_of
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import DUMMIES, split_images
from lightning_privacy.testing.tiny_modules import TinyDenoiser

CASES = {**dict.fromkeys(defence_names()), **DUMMIES}
PAIRS = list(combinations(sorted(CASES), 2))


def _case(name):
    return CASES[name] or case_of(name)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_pair(one, other, tmp_path):
    first, second = _case(one), _case(other)
    # The module and data of a registered defence know all protocols; dummies are content with anything.
    case = next((c for c in (first, second) if c.name not in DUMMIES), None)
    module = case.module() if case else TinyDenoiser()
    side = next((c for c in (first, second) if c.data_side), case)
    data = side.data(8) if side else split_images(8)
    pair = [first.build(), second.build()]
    declared = find_conflicts(pair, Environment())
    if declared:
        with pytest.raises(DefenceConflictError) as refused:
            fit(tmp_path, module, data, pair, limit_train_batches=1)
        assert str(refused.value) == "\n".join(c.sentence() for c in declared)
        assert all(party in str(refused.value) for party in (one, other))
    else:
        fitted = fit(tmp_path, module, data, pair[::-1], limit_train_batches=2)
        assert fitted.trainer.global_step == 2
        assert all(torch.isfinite(v).all() for v in fitted.weights.values())


def test_order_of_the_callbacks_does_not_matter(tmp_path):
    defences = [case.build() for case in DUMMIES.values() if case.name != "post_step_dummy"]
    runs = [fit(tmp_path, TinyDenoiser(), split_images(8), order) for order in (defences, defences[::-1])]
    for key, weight in runs[0].weights.items():
        assert torch.equal(weight, runs[1].weights[key])
