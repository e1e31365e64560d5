"""Training at once is training one after the other, only faster: same batches, losses and weights."""

from contextlib import nullcontext

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.shadows import vectorised as vectorised_file
from lightning_privacy.shadows.sequential import copied_state, shadow_trainer, training_seed
from lightning_privacy.shadows.stacked_batches import StackedBatches, only_tensors
from lightning_privacy.shadows.stacked_layout import ChannelsTogether
from lightning_privacy.shadows.stacked_steps import clip_each
from lightning_privacy.shadows.vectorised import Job, train_stacked
from lightning_privacy.testing.toy_data import ToyImages, _Discs

TRAINER = {"max_epochs": 2, "accelerator": "cpu", "limit_val_batches": 0}


class Tiny(L.LightningModule):
    """Classes of coloured discs from pictures of 8 pixels a side."""

    def __init__(self, optimizer="sgd", seed=0, dropout=0.0, norm=False, schedule=""):
        super().__init__()
        self.optimizer, self.schedule, self.losses = optimizer, schedule, []
        torch.manual_seed(seed)
        middle = [nn.BatchNorm2d(4)] if norm else [nn.Dropout(dropout)] if dropout else []
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))

    def logits(self, batch):
        return self.net(batch["image"])

    def functional_loss(self, parameters, buffers, batch):
        state = {name.removeprefix("net."): value for name, value in {**parameters, **buffers}.items()}
        return F.cross_entropy(functional_call(self.net, state, (batch["image"],)), batch["label"])

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.logits(batch), batch["label"])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.logits(batch), batch["label"]), batch_size=len(batch["label"]))

    def configure_optimizers(self):
        made = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
            "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
            "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
            "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
            "lbfgs": lambda p: torch.optim.LBFGS(p, lr=1e-2),
        }[self.optimizer](self.parameters())
        if not self.schedule:
            return made
        if self.schedule == "step":
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, steps)
        else:
            schedule = torch.optim.lr_scheduler.ExponentialLR(made, 0.5)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": self.schedule}}


class Pooled(Tiny):
    """Every kind of convolution and pool that a stack computes in a layout of its own."""

    def __init__(self, seed):
        super().__init__(seed=seed)
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
            *(nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=False), nn.AvgPool2d(2, 1)),
            *(nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )


class Hooked(Tiny):
    def on_train_epoch_end(self):
        pass


class ByHand(Tiny):
    functional_loss = None


class Shifted(Tiny):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] + 1}


class _Augmented(_Discs):
    keyed_by_epoch = True

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "image": item["image"] + getattr(index, "epoch", 0)}


class Augmented(ToyImages):
    def setup(self, stage):
        self.dataset = _Augmented(self.n, self.size, self.seed)


class _Random(_Discs):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "image": item["image"] + torch.rand(())}


class Random(ToyImages):
    def setup(self, stage):
        self.dataset = _Random(self.n, self.size, self.seed)


def make_split(data=ToyImages, **options):
    split = MembershipSplit(data(size=8, **{"n": 40, "batch_size": 8, **options}))
    split.prepare_data()
    split.setup("fit")
    return split


def _sequential(build, job, trainer, folder):
    module, _ = build(job.seed)
    running = shadow_trainer(trainer, [], folder)
    torch.manual_seed(training_seed(job.seed))
    running.fit(module, datamodule=job.split)
    return module


def _compare(build, tmp_path, trainer=TRAINER, data=ToyImages, count=4, tolerance=1e-5, **options):
    pool = ShadowPool(build, make_split(data, **options), count, trainer=trainer, folder=tmp_path)
    jobs = [Job(k, 10 + k, pool.data(k)) for k in range(count)]
    stacked = {each.shadow: each for each in train_stacked(build, jobs, trainer, tmp_path)}
    assert sorted(stacked) == list(range(count))
    for job in jobs:
        module = _sequential(build, job, trainer, tmp_path)
        found = stacked[job.shadow]
        assert len(found.losses) == len(module.losses) > 2
        torch.testing.assert_close(found.losses, module.losses, rtol=0, atol=tolerance)
        start = copied_state(build(job.seed)[0])
        for name, value in module.state_dict().items():
            torch.testing.assert_close(found.state[name], value, rtol=0, atol=tolerance)
            assert not torch.equal(found.state[name], start[name])
    return jobs


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_losses_and_weights_are_those_of_single_training(tmp_path, optimizer):
    jobs = _compare(lambda seed: (Tiny(optimizer, seed), []), tmp_path)
    assert {len(job.split.roles["member"]) % 8 for job in jobs} == {6}


def test_convolutions_and_pools_of_a_stack_are_those_of_single_training(tmp_path):
    _compare(lambda seed: (Pooled(seed), []), tmp_path)


def test_convolutions_and_pools_together_have_the_gradients_of_vmap():
    draw = torch.Generator().manual_seed(0)
    images, kernels, bias = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((3, 5, 4, 9, 9), (3, 6, 2, 3, 3), (3, 6))
    )
    shared = torch.randn(6, 6, 3, 3, generator=draw, dtype=torch.float64).requires_grad_()

    def one(images, kernels, bias):
        found = F.max_pool2d(F.conv2d(images, kernels, bias, padding=1, groups=2).relu(), 2)
        # Kernels and biases that all models share, beside each model's own.
        found = F.conv2d(found, shared, bias)
        return found.square().mean() + F.avg_pool2d(F.conv2d(shared, shared, padding=2), 2).square().mean()

    found = []
    for layout in (ChannelsTogether(), nullcontext()):
        with layout:
            losses = torch.func.vmap(one)(images, kernels, bias)
        found.append([losses, *torch.autograd.grad(losses.sum(), (images, kernels, bias, shared))])
    for mine, vmaps in zip(*found, strict=True):
        torch.testing.assert_close(mine, vmaps)


def test_last_batches_of_different_sizes_go_together(tmp_path):
    # 29 records: halves of 14 and 15, so that the last batches hold 4 and 5.
    jobs = _compare(lambda seed: (Tiny("adamw", seed), []), tmp_path, n=41, batch_size=5)
    assert {len(job.split.roles["member"]) % 5 for job in jobs} == {4, 0}
    assert len({job.split._new_sampler(0, 1).n_batches for job in jobs}) == 1


def test_runs_of_different_lengths_are_trained_apart(tmp_path):
    jobs = _compare(lambda seed: (Tiny("adamw", seed), []), tmp_path, n=41, batch_size=7)
    assert {job.split._new_sampler(0, 1).n_batches for job in jobs} == {2, 3}


def test_running_statistics_of_batch_normalisation_are_each_models_own(tmp_path):
    _compare(lambda seed: (Tiny("sgd", seed, norm=True), []), tmp_path, n=41, batch_size=5)


@pytest.mark.parametrize("schedule", ["step", "epoch"])
def test_learning_rate_schedules_advance_as_lightning_advances_them(tmp_path, schedule):
    _compare(lambda seed: (Tiny("sgd", seed, schedule=schedule), []), tmp_path)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_model_by_model(tmp_path, algorithm):
    clipped = {**TRAINER, "gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    _compare(lambda seed: (Tiny("sgd", seed), []), tmp_path, clipped)
    gradients = [torch.randn(3, 4, 2), torch.randn(3, 5)]
    one = [nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(5))]
    for parameter, gradient in zip(one, gradients, strict=True):
        parameter.grad = gradient[1].clone()
    nn.utils.clip_grad_norm_(one, 0.7)
    clip_each(gradients, 0.7, "norm")
    for parameter, gradient in zip(one, gradients, strict=True):
        torch.testing.assert_close(gradient[1], parameter.grad)


def test_limits_of_steps_and_batches_are_lightnings(tmp_path):
    _compare(lambda seed: (Tiny("sgd", seed), []), tmp_path, {**TRAINER, "max_steps": 3})
    _compare(lambda seed: (Tiny("sgd", seed), []), tmp_path, {**TRAINER, "limit_train_batches": 2, "max_epochs": 3})


def test_augmentation_keyed_by_epoch_is_that_of_single_training(tmp_path):
    _compare(lambda seed: (Tiny("sgd", seed), []), tmp_path, data=Augmented)


def test_half_precision_is_autocast_as_lightning_does(tmp_path):
    # bfloat16 keeps 8 bits, so that sums in another order differ in the third digit.
    mixed = {**TRAINER, "precision": "bf16-mixed"}
    _compare(lambda seed: (Tiny("sgd", seed), []), tmp_path, mixed, tolerance=0.02)


def test_chunks_that_fit_the_memory_make_the_same_models(tmp_path, monkeypatch):
    def build(seed):
        return Tiny("sgd", seed), []

    pool = ShadowPool(build, make_split(), 6, trainer=TRAINER, folder=tmp_path)
    jobs = [Job(k, k, pool.data(k)) for k in range(6)]
    whole = list(train_stacked(build, jobs, TRAINER, tmp_path))
    monkeypatch.setattr(vectorised_file, "_at_once", lambda *_: 4)
    parts = list(train_stacked(build, jobs, TRAINER, tmp_path))
    assert [each.shadow for each in parts] == list(range(6))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.state, other.state, rtol=0, atol=1e-5)


def test_memory_bounds_how_many_go_together(tmp_path, monkeypatch):
    def build(seed):
        return Tiny("sgd", seed), []

    pool = ShadowPool(build, make_split(), 2, trainer=TRAINER, folder=tmp_path)
    jobs = [Job(k, k, pool.data(k)) for k in range(2)]
    many = vectorised_file._at_once(build, jobs, TRAINER, tmp_path)
    monkeypatch.setattr(vectorised_file, "CPU_BYTES", vectorised_file.CPU_BYTES // 2)
    assert abs(vectorised_file._at_once(build, jobs, TRAINER, tmp_path) - many / 2) <= 1
    monkeypatch.setattr(vectorised_file, "CPU_BYTES", 0)
    assert vectorised_file._at_once(build, jobs, TRAINER, tmp_path) == 1


def test_models_that_keep_a_cpu_busy_are_trained_one_by_one_unless_asked_otherwise(tmp_path, monkeypatch, caplog):
    def build(seed):
        return Tiny("sgd", seed), []

    caplog.set_level("INFO")
    monkeypatch.setattr(vectorised_file, "CPU_BUSY", 10)
    split = make_split()
    assert ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).train() == [0, 1]
    assert "keeps a CPU busy by itself" in caplog.text
    monkeypatch.setattr("lightning_privacy.shadows.pool.train_one", None)
    asked = ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path / "asked", vectorised=True)
    assert asked.train() == [0, 1]


@pytest.mark.parametrize(
    ("build", "trainer", "data", "reason"),
    [
        (lambda seed: (ByHand(seed=seed), []), {}, ToyImages, "ByHand has no `functional_loss`"),
        (lambda seed: (Hooked(seed=seed), []), {}, ToyImages, "Hooked.on_train_epoch_end would not be called"),
        (lambda seed: (Shifted(seed=seed), []), {}, ToyImages, "Shifted.on_before_batch_transfer makes other batches"),
        (lambda seed: (Tiny(seed=seed), [L.Callback()]), {}, ToyImages, "`Callback` acts in the training of each"),
        (lambda seed: (Tiny("adagrad", seed), []), {}, ToyImages, "Adagrad is not one of the elementwise optimizers"),
        (lambda seed: (Tiny("lbfgs", seed), []), {}, ToyImages, "LBFGS is not one of the elementwise optimizers"),
        (lambda seed: (Tiny(seed=seed, dropout=0.5), []), {}, ToyImages, "draws random numbers, as dropout does"),
        (lambda seed: (Tiny(seed=seed), []), {"max_time": "00:01"}, ToyImages, "the trainer argument `max_time`"),
        (lambda seed: (Tiny(seed=seed), []), {"precision": "64-true"}, ToyImages, "precision '64-true' is not one"),
        (lambda seed: (Tiny(seed=seed), []), {"accumulate_grad_batches": 2}, ToyImages, "gradients are accumulated"),
        (lambda seed: (Tiny(seed=seed), []), {}, Random, "augments at random"),
    ],
)
def test_what_cannot_be_trained_at_once_says_why(tmp_path, build, trainer, data, reason):
    arguments = {**TRAINER, **trainer}
    pool = ShadowPool(build, make_split(data), 2, trainer=arguments, folder=tmp_path, vectorised=True)
    with pytest.raises(InputError, match=f"cannot be trained at once: .*{reason}"):
        pool.train()


def test_auto_falls_back_in_one_sentence_and_trains_at_once_where_it_can(tmp_path, caplog):
    caplog.set_level("INFO")
    split = make_split()
    for build in (lambda seed: (Hooked(seed=seed), []), lambda seed: (Tiny(seed=seed), [])):
        assert ShadowPool(build, split, 2, trainer=TRAINER, folder=tmp_path).train() == [0, 1]
    told = [record.message for record in caplog.records if "one after the other" in record.message]
    assert told == ["Shadow models are trained one after the other: Hooked.on_train_epoch_end would not be called."]


class Mixed(Tiny):
    """Like a classifier under mixup: its loss is not a function of parameters and one batch."""

    def functional_loss(self, parameters, buffers, batch):
        raise InputError("Mixed has no functional_loss; set mixup to 0.")


def test_a_module_that_refuses_its_functional_loss_is_trained_one_by_one(tmp_path, caplog):
    pool = ShadowPool(lambda seed: (Mixed(seed=seed), []), make_split(), 2, trainer=TRAINER, folder=tmp_path)
    with caplog.at_level("INFO"):
        assert len(pool.train()) == 2
    assert "set mixup to 0" in caplog.text


def test_both_ways_share_their_files(tmp_path):
    split = make_split()
    assert ShadowPool(
        lambda seed: (Tiny(seed=seed), []), split, 2, trainer=TRAINER, folder=tmp_path, vectorised=True
    ).train() == [0, 1]
    again = ShadowPool(lambda seed: (Tiny(seed=seed), []), split, 4, trainer=TRAINER, folder=tmp_path, vectorised=False)
    assert again.train() == [2, 3]


def test_stacked_batches_are_those_of_each_loader(tmp_path):
    pool = ShadowPool(lambda seed: (Tiny(seed=seed), []), make_split(), 2, trainer=TRAINER, folder=tmp_path)
    splits = [pool.data(k) for k in range(2)]
    batches = StackedBatches(splits, torch.device("cpu"), Tiny())
    loaders = [list(split.train_dataloader()) for split in splits]
    for batch_idx in range(batches.n_batches):
        (shadows, form, tensors), *more = batches.batch(0, batch_idx)
        assert shadows == [0, 1] and not more
        assert list(form) == ["image", "label", "record"]
        for shadow in shadows:
            expected = loaders[shadow][batch_idx]
            for tensor, name in zip(tensors, form, strict=True):
                assert torch.equal(tensor[shadow], expected[name])


def test_texts_are_left_out_of_a_stacked_batch():
    batch = {"image": torch.zeros(2), "caption": ["a", "b"], "more": (torch.ones(2), 3)}
    assert list(only_tensors(batch)) == ["image", "more"]
    assert only_tensors(batch)["more"][1] is None
