import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.attack_metrics import EpsilonLowerBound, MembershipAUROC, TPRAtFPR
from lightning_privacy.metrics.functional.delong import delong_interval
from lightning_privacy.metrics.functional.epsilon import epsilon_lower_bound
from lightning_privacy.metrics.functional.low_fpr import tpr_at_fpr_interval
from lightning_privacy.metrics.functional.roc import operating_points


def leaking(n=300):
    generator = torch.Generator().manual_seed(0)
    member = torch.rand(n, generator=generator) < 0.5
    return torch.randn(n, generator=generator) + 1.5 * member, member


CASES = [
    (MembershipAUROC, {}, delong_interval),
    (TPRAtFPR, {"fpr": 0.1}, lambda m, n: tpr_at_fpr_interval(operating_points(m, n), 0.1)),
    (EpsilonLowerBound, {"threshold": 1.0, "delta": 1e-3}, lambda m, n: epsilon_lower_bound(m, n, 1.0, delta=1e-3)),
    (EpsilonLowerBound, {"threshold": 1.0, "tests": 9}, lambda m, n: epsilon_lower_bound(m, n, 1.0, tests=9)),
    (EpsilonLowerBound, {"strategy": "split"}, lambda m, n: epsilon_lower_bound(m, n, strategy="split")),
]


@pytest.mark.parametrize(("cls", "args", "twin"), CASES)
def test_batches_in_any_order_equal_the_functional_twin(cls, args, twin):
    scores, member = leaking()
    expected = twin(scores[member], scores[~member])
    metric = cls(**args)
    order = torch.randperm(len(scores))
    for part in order.split(64):
        metric.update(scores[part], member[part])
    assert metric.result() == expected
    assert float(metric.compute()) == pytest.approx(expected.value, rel=1e-6)
    metric.reset()
    with pytest.raises(InputError, match="no record"):
        metric.result()


def _measured_on_a_rank():
    scores, member = leaking()
    mine = slice(0, 100) if torch.distributed.get_rank() == 0 else slice(100, None)
    metric = MembershipAUROC()
    metric.update(scores[mine], member[mine])
    found = metric.result()
    return found.value, found.low, found.high, float(metric.compute()), len(metric.scores[0])


@pytest.mark.dist
def test_ranks_of_unequal_size_are_joined_and_keep_their_own(rank_pool):
    scores, member = leaking()
    expected = delong_interval(scores[member], scores[~member])
    first, second = rank_pool.run(_measured_on_a_rank)
    assert first[:3] == second[:3] == (expected.value, expected.low, expected.high)
    assert first[3] == pytest.approx(expected.value)
    assert (first[4], second[4]) == (100, 200)


def test_what_the_records_cannot_support_is_nan_with_a_reason():
    scores, member = leaking()
    tpr = TPRAtFPR(0.01)
    tpr.update(scores, member)
    assert tpr.compute().isnan()
    assert "1000 needed" in tpr.result().reason
    epsilon = EpsilonLowerBound(1.0, "scored_records")
    epsilon.update(scores, member)
    assert epsilon.compute().isnan()
    assert "scored records" in epsilon.result().reason
    with pytest.raises(InputError, match="rate"):
        TPRAtFPR(0)


def test_half_precision_scores_count_and_one_side_alone_is_refused():
    metric = MembershipAUROC()
    metric.update(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([False, False]))
    with pytest.raises(InputError, match="0 and 2"):
        metric.result()
    metric.update(torch.tensor([3.0], dtype=torch.bfloat16), torch.tensor([True]))
    assert metric.compute() == 1.0


class Attacked(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.auroc, self.tpr, self.epsilon = MembershipAUROC(), TPRAtFPR(0.1), EpsilonLowerBound(1.0)

    def validation_step(self, batch, index):
        for name in ("auroc", "tpr", "epsilon"):
            getattr(self, name).update(*batch)
            self.log(f"attack/{name}", getattr(self, name), on_epoch=True)


def test_a_lightning_module_logs_them(tmp_path):
    scores, member = leaking()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    (logged,) = trainer.validate(Attacked(), DataLoader(TensorDataset(scores, member), 50), verbose=False)
    assert logged["attack/auroc"] == pytest.approx(delong_interval(scores[member], scores[~member]).value)
    assert logged["attack/epsilon"] == pytest.approx(
        epsilon_lower_bound(scores[member], scores[~member], 1.0).value, rel=1e-6
    )
    assert 0 < logged["attack/tpr"] < 1
