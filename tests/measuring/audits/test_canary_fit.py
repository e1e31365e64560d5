"""Which attacks the audit of canaries fits before it scores, and what its intervals say of perfect guesses."""

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.membership.registry import MEMBERSHIP_ATTACKS, build_attack
from lightning_privacy.callbacks.canaries.callback import CanaryAudit
from lightning_privacy.callbacks.canaries.canary_audit import audit_canaries, canary_metrics, needs_fit
from lightning_privacy.datamodules.canaries import CanaryData
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.toy_data import ToyImages

ROOM = {"member": 0.3, "aux_nonmember": 0.05, "attack_nonmember": 0.1, "val": 0.05, "holdout": 0.2}


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def logits(self, batch):
        return self.net(batch["image"])

    def per_sample_error(self, batch, draw=None):
        return F.cross_entropy(self.logits(batch), batch["label"], reduction="none")

    def training_step(self, batch, batch_idx):
        return self.per_sample_error(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.per_sample_error(batch).mean(), batch_size=len(batch["label"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def planted():
    return CanaryData(MembershipSplit(ToyImages(n=200, size=8, batch_size=40), fractions=ROOM), count=20)


class Scorer:
    """Learns no side; keeps the records that it is fitted on, or says that it keeps nothing."""

    name, requires, access, learns = "scorer", frozenset({"loss"}), "loss", False

    def __init__(self, calibrates=None):
        self.fitted = 0
        if calibrates is not None:
            self.calibrates = calibrates

    def fit(self, members, nonmembers, seed=0):
        self.fitted += 1
        return True

    def score(self, signals):
        return -signals.loss.mean(1)


@pytest.mark.parametrize("names", [["population"], ["scaled_confidence", "population", "class_confidence"]])
def test_attacks_that_learn_no_side_but_calibrate_are_fitted(tmp_path, names):
    audit = CanaryAudit(attacks=names, bootstrap=0)
    fit(tmp_path, Linear(), planted(), [audit])
    assert [result.attack for result in audit.last_results] == names


@pytest.mark.parametrize(("calibrates", "fits"), [(None, 1), (True, 1), (False, 0)])
def test_only_an_attack_that_says_it_keeps_nothing_is_not_fitted(calibrates, fits):
    data, scorer = planted(), Scorer(calibrates)
    data.setup("fit")
    (result,) = audit_canaries(Linear(), data, [scorer], bootstrap=0)
    assert scorer.fitted == fits
    assert result.converged


def test_every_registered_attack_that_calibrates_is_fitted():
    calibrating = {"population", *(name for name in MEMBERSHIP_ATTACKS if name.startswith(("lira", "rmia")))}
    assert all(needs_fit(build_attack(name)) for name in calibrating)
    assert all(
        needs_fit(build_attack(name)) for name, cls in MEMBERSHIP_ATTACKS.items() if getattr(cls, "learns", True)
    )


def test_no_share_at_all_is_one_clear_error():
    with pytest.raises(InputError, match="give `shares`"):
        canary_metrics(torch.arange(4.0), torch.tensor([True, False, True, False]), shares=[])


def test_perfect_guesses_leave_the_auroc_uncertain():
    coins = torch.arange(40) % 2 == 0
    found, _ = canary_metrics(coins.double(), coins, bootstrap=50)
    assert (found["auroc"].value, found["auroc"].high) == (1.0, 1.0)
    assert found["auroc"].low == pytest.approx(0.025 ** (1 / 20))
