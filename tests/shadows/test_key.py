"""What a shadow model's key tells apart: whatever alters training, and nothing else."""

import json
import threading
from functools import partial

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.callbacks.audits.shadow_training import shadow_pool
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.shadows import key as key_file
from lightning_privacy.shadows.canonical import canonical, class_sources
from lightning_privacy.testing.toy_data import ToyImages

TRAINER = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0}


class Linear(L.LightningModule):
    """Keeps what it is given in a private attribute, and nothing as a hyper-parameter."""

    def __init__(self, given=None, net=None):
        super().__init__()
        self._given, self.net = given, net or nn.Linear(3 * 16, 4)

    def logits(self, batch):
        return self.net(batch["image"].flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch), batch["label"])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Kept(Linear):
    def __init__(self, given):
        super().__init__()
        self.hparams["given"] = given


class Weighted(Defence):
    name = "weighted"
    slots = frozenset({Slot.OBJECTIVE})

    def __init__(self, weight=1.0, error_fn=None):
        super().__init__()
        self.weight, self.error_fn = weight, error_fn


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def of(self, value):
        return self.factor * value


def scaled_by(factor):
    return lambda value: factor * value


def with_hook(factor):
    module = Linear()
    module.net.register_forward_hook(partial(torch.mul, factor))
    return module


def with_buffer(value):
    module = Linear()
    module.register_buffer("weights", torch.full((4,), value), persistent=False)
    return module


def stacked(layer):
    return Linear(net=nn.Sequential(nn.Linear(48, 8), layer, nn.Linear(8, 4)))


def make_split(data=None, **options):
    split = MembershipSplit(data or ToyImages(n=24, size=4), **options)
    split.prepare_data()
    split.setup("fit")
    return split


@pytest.fixture(scope="module")
def split():
    return make_split()


def key_of(build, split, folder="unused", **options):
    return ShadowPool(build, split, 2, trainer=TRAINER, folder=folder, **options).path(0).name


def parts_of(make, *defences):
    torch.manual_seed(0)
    return key_file.module_parts(make(), defences, TRAINER, loose=False)


CHANGES = {
    "a private attribute": [lambda: Linear(0.0), lambda: Linear(0.5)],
    "an optimizer by a private partial": [
        lambda: Linear(partial(torch.optim.SGD, lr=0.1)),
        lambda: Linear(partial(torch.optim.SGD, lr=1.0)),
    ],
    "a loss as a layer": [
        lambda: stacked(nn.CrossEntropyLoss()),
        lambda: stacked(nn.CrossEntropyLoss(label_smoothing=0.5)),
    ],
    "a loss as a hyper-parameter": [
        lambda: Kept(nn.CrossEntropyLoss()),
        lambda: Kept(nn.CrossEntropyLoss(label_smoothing=0.5)),
    ],
    "dropout": [lambda: stacked(nn.Dropout(0.0)), lambda: stacked(nn.Dropout(0.9))],
    "an activation": [lambda: stacked(nn.ReLU()), lambda: stacked(nn.Tanh())],
    "a lambda on the same line": [lambda: Linear(lambda: 1.0), lambda: Linear(lambda: -3.0)],
    "what a function captured": [lambda: Linear(scaled_by(1)), lambda: Linear(scaled_by(2))],
    "the object of a bound method": [lambda: Linear(Scaled(1).of), lambda: Linear(Scaled(2).of)],
    "an object with slots": [lambda: Linear(Slotted(1)), lambda: Linear(Slotted(2))],
    "a hook": [lambda: with_hook(1), lambda: with_hook(2)],
    "a buffer that no checkpoint keeps": [lambda: with_buffer(1.0), lambda: with_buffer(2.0)],
    "the mode of a layer": [lambda: stacked(nn.Dropout(0.5)), lambda: stacked(nn.Dropout(0.5).eval())],
}


@pytest.mark.parametrize("makers", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_module_is_another_key(makers):
    one, other, again = (parts_of(make) for make in (*makers, makers[0]))
    assert one == again != other


DEFENCES = {
    "a tensor": [torch.ones(1), torch.zeros(1)],
    "a lambda": [lambda: 1.0, lambda: -3.0],
    "a partial": [partial(float, 1), partial(float, -3)],
    "a number": [1.0, 0.5],
}


@pytest.mark.parametrize("arguments", DEFENCES.values(), ids=DEFENCES)
def test_a_change_of_a_defences_argument_is_another_key(arguments):
    one, other, again = (parts_of(Linear, Weighted(value)) for value in (*arguments, arguments[0]))
    assert one == again != other


def test_a_changed_model_is_trained_although_the_old_one_is_kept(split, tmp_path):
    for smoothing, trained in ((0.0, [0, 1]), (0.5, [0, 1]), (0.0, [])):
        pool = ShadowPool(lambda seed, s=smoothing: (Linear(s), []), split, 2, trainer=TRAINER, folder=tmp_path)
        assert pool.train() == trained


def test_what_has_no_form_is_refused_by_its_name_and_passes_with_a_signature(split):
    def build(seed):
        return Linear({"inner": [threading.Lock()]}), []

    with pytest.raises(InputError, match=r"`Linear\._given\.inner` holds a _thread:lock.*signature"):
        key_of(build, split)
    with pytest.raises(InputError, match=r"`weighted\.weight` holds a _thread:lock"):
        key_of(lambda seed: (Linear(), [Weighted(threading.Lock())]), split)
    assert key_of(build, split, signature="locked") == key_of(build, split, signature="locked")


def test_an_audit_without_a_signature_is_as_strict_as_a_pool(split, tmp_path):
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    for signature in ("", None):
        pool = shadow_pool(
            lambda seed: (Linear(threading.Lock()), []),
            trainer,
            split,
            2,
            epochs=1,
            folder=tmp_path,
            signature=signature,
        )
        with pytest.raises(InputError, match="Linear._given` holds a _thread:lock"):
            pool.path(0)


def test_an_attribute_that_no_seed_repeats_is_no_setting(split):
    drawn = iter(range(100))
    build = lambda seed: (Linear({"made": next(drawn), "lr": 0.1}), [])  # noqa: E731
    assert key_of(build, split) == key_of(build, split)
    assert key_of(build, split) != key_of(lambda seed: (Linear({"made": next(drawn), "lr": 0.2}), []), split)


def test_a_trainer_a_device_and_a_folder_are_not_part_of_the_key(split, tmp_path):
    build = lambda seed: (Linear(), [])  # noqa: E731
    one = ShadowPool(build, split, 2, trainer={**TRAINER, "default_root_dir": "one"}, folder=tmp_path / "one")
    other = ShadowPool(build, split, 2, trainer={**TRAINER, "devices": [0]}, folder=tmp_path / "other")
    assert one.path(0).name == other.path(0).name
    assert canonical(torch.device("cuda:0"), "d") == canonical(torch.device("cuda:1"), "d")
    trainers = [L.Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path / x)) for x in "ab"]
    assert canonical(trainers[0], "t") == canonical(trainers[1], "t")


def _full(seed):
    """A module with everything whose address or order could differ between processes."""
    module = stacked(nn.LSTM(8, 8))
    module._given = {1: {"b", "a", "c"}, "f": Scaled(1).of, ("x", 2): frozenset({"u", "v"}), "self": module}
    module.loss = module.logits
    module._losses = [F.cross_entropy, partial(F.cross_entropy, label_smoothing=0.1), scaled_by(2)]
    return module, [Weighted(lambda: {1, 2} - {3})]


def _parts(folder):
    pool = ShadowPool(_full, make_split(), 2, trainer=TRAINER, folder=folder)
    # Without the digest of this package's files, which may be edited while tests run; ranks import this file by another
    # name than pytest does.
    texts = [json.dumps({**pool.parts(k), "code": ""}, sort_keys=True) for k in range(2)]
    return [text.replace(f"{Linear.__module__}:", "") for text in texts]


@pytest.mark.dist
def test_every_process_and_every_rank_makes_the_same_key(rank_pool, tmp_path):
    here = _parts("one")
    assert rank_pool.run(_parts, str(tmp_path)) == [here, here]
    assert "0x" not in here[0]


def test_canonical_forms_tell_functions_apart():
    one, same, other = (canonical(scaled_by(factor), "f") for factor in (1, 1, 2))
    assert one == same != other
    assert class_sources([Linear]).keys() == {f"{Linear.__module__}:Linear"}


def test_something_that_holds_itself_has_a_form_or_is_refused():
    one = Scaled(1)
    one.factor = one
    assert canonical(one, "o")["state"] == {"factor": {"met": 0}}
    endless = []
    endless.append(endless)
    with pytest.raises(InputError, match="`o` holds a builtins:list.*nested too deeply"):
        canonical(endless, "o")
