"""What a leakage audit refuses, each in one sentence."""

import pickle

import pytest
import torch
from torch import nn

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.callbacks.audits.leakage import LeakageAudit
from lightning_privacy.callbacks.audits.leakage_audit import LeakagePlan, audit_leakage
from lightning_privacy.callbacks.audits.leakage_pictures import read_leakage_pictures
from lightning_privacy.callbacks.key_lock.protect import protect
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images, split_images
from lightning_privacy.testing.smooth_classifier import SmoothClassifier
from lightning_privacy.testing.tiny_modules import TinyDenoiser


def plan(**more):
    return LeakagePlan(**{"attacks": lambda: {"dlg": DeepLeakage(evaluations=2, restarts=1)}, "victims": 2, **more})


@pytest.fixture(scope="module")
def split():
    made = split_images()
    made.setup("fit")
    return made


class Squared(SmoothClassifier):
    def training_step(self, batch, batch_idx):
        return self.logits(batch).square().mean()


class _Split:
    def __init__(self, batch):
        self.batch = batch

    def loader(self, role):
        return [self.batch]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attacks": ["deep"]}, "There is no leakage attack `deep`"),
        ({"attacks": ["dlg", "dlg"]}, "names each attack once"),
        ({"attacks": ["label_inference"]}, "at least one attack that reconstructs"),
        ({"attack_args": {"dlg": {"depth": 3}}}, "has no argument `depth`"),
        ({"attack_args": {"label_inference": {"depth": 3}}}, "has no arguments"),
        ({"attack_args": {"joint": {"attack": "imprint"}}}, "extends one of dlg"),
        ({"controls": ["oracle"]}, "knows no control"),
        ({"victims": 1}, "victims >= 2"),
        ({"batch_sizes": [1, 1]}, "each named once"),
        ({"batch_sizes": [0]}, "at least one record"),
        ({"local_steps": 0}, "local_steps >= 1"),
        ({"shares_statistics": True, "mode": "eval"}, "mode train only"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments, words):
    with pytest.raises(InputError, match=words):
        LeakageAudit(**arguments)


def test_what_cannot_be_audited_is_refused_in_words(split, tmp_path):
    with pytest.raises(InputError, match="cross-entropy of `logits"):
        audit_leakage(Squared(), split, plan(), "initial")
    with pytest.raises(InputError, match="attacks 400 records"):
        audit_leakage(SmoothClassifier(), split, plan(victims=100, batch_sizes=(1, 4)), "initial")
    audit = LeakageAudit(victims=2)
    with pytest.raises(MissingProtocolError, match="LeakageAudit needs `TinyDenoiser.logits"):
        fit(tmp_path, TinyDenoiser(), split_images(), [audit])
    with pytest.raises(SplitError, match="LeakageAudit must know who is a member"):
        fit(tmp_path, SmoothClassifier(), plain_images(), [audit])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.full((4, 3, 8, 8), 1.5), torch.zeros(4).long()), "values from 1.5 to 1.5"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(4)), "have no classes"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(4).long()), "has 4 pictures for floors"),
    ],
)
def test_pictures_that_cannot_be_scored_are_refused(batch, words):
    with pytest.raises(InputError, match=words):
        read_leakage_pictures(SmoothClassifier(), _Split(batch), 2, 0)


def test_labels_outside_the_scores_are_refused(split):
    module = SmoothClassifier()
    module.network.head = nn.Linear(256, 2)
    with pytest.raises(InputError, match="for labels from"):
        audit_leakage(module, split, plan(), "initial")


def test_a_module_without_its_secrets_is_refused(split):
    module = SmoothClassifier(norm=True)
    protect(module, key_length=4)
    opened = pickle.loads(pickle.dumps(module.network))  # a pickle drops secrets
    module.network = opened
    with pytest.raises(InputError, match="Load it with its vault"):
        audit_leakage(module, split, plan(), "initial")


def test_a_norm_that_cannot_take_one_record_is_refused(split):
    module = SmoothClassifier()
    module.network.flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256))
    with pytest.raises(InputError, match="set `mode: eval`"):
        audit_leakage(module, split, plan(), "initial")


def test_a_module_that_needs_its_trainer_is_told_what_to_add(split):
    class Attached(SmoothClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * self.trainer.max_epochs

    with pytest.raises(InputError, match="cannot run outside of training"):
        audit_leakage(Attached(), split, plan(), "initial")
