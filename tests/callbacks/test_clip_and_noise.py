"""Clipping and noise: closed forms, records against batches, what is decided when, and the attack that knows both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.clip_and_noise.attack import ClippedMatching
from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise
from lightning_privacy.callbacks.clip_and_noise.functional import (
    clip_and_noise,
    clip_records_and_noise,
    clipped,
    global_norm,
    noise_std,
    record_norms,
)
from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise
from lightning_privacy.callbacks.gradient_noise.private_seed import StepNoise
from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of
from lightning_privacy.callbacks.negative_label_smoothing.callback import NegativeLabelSmoothing
from lightning_privacy.errors import DefenceConflictError, InputError, MissingProtocolError
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import plain_images, split_images, tiny_classifier
from lightning_privacy.testing.tiny_modules import PlainRegressor


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def update(seed=0, scale=1.0):
    g = generator(seed)
    return {"w": scale * torch.randn(5, 7, generator=g), "b": scale * torch.randn(3, generator=g)}


@settings(max_examples=25)
@given(st.integers(0, 999), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_clipping_is_that_of_torch(seed, scale, bound):
    values = update(seed, scale)
    parameters = [nn.Parameter(torch.zeros_like(v)) for v in values.values()]
    for p, v in zip(parameters, values.values(), strict=True):
        p.grad = v.clone()
    before = nn.utils.clip_grad_norm_(parameters, bound)
    assert global_norm(values).item() == pytest.approx(before.item(), rel=1e-5)
    for p, v in zip(parameters, clipped(values, bound).values(), strict=True):
        assert torch.allclose(p.grad, v, rtol=1e-4)  # torch adds 1e-6 to the norm


def test_a_short_gradient_passes_bit_for_bit_and_zero_stays_zero():
    values = update()
    assert not compare(clipped(values, 1e6), values)
    assert clipped({"w": torch.zeros(3)}, 1.0)["w"].tolist() == [0, 0, 0]


def test_noise_has_the_standard_deviation_sigma_c_over_n():
    big = {"w": torch.zeros(50_000)}
    assert clip_and_noise(big, 2.0, 1.5, generator())["w"].std().item() == pytest.approx(3.0, rel=0.02)
    rows = {"w": torch.zeros(6, 50_000)}
    assert clip_records_and_noise(rows, 2.0, 1.5, generator())["w"].std().item() == pytest.approx(0.5, rel=0.02)
    assert noise_std(2.0, 1.5, 6) == 0.5


def test_no_record_moves_the_mean_by_more_than_two_c_over_n():
    rows = {"w": 100 * torch.randn(8, 4, generator=generator()), "b": torch.randn(8, 2, generator=generator(1))}
    other = {k: v.clone() for k, v in rows.items()}
    for value in other.values():
        value[3] *= -50
    one, two = (clip_records_and_noise(r, 0.5, 0.0, generator()) for r in (rows, other))
    assert global_norm({k: one[k] - two[k] for k in one}).item() <= 2 * 0.5 / 8 + 1e-6


def test_norms_of_records_are_those_of_one_backward_pass_each():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(6, 4)
    parameters = [*net.parameters(), nn.Parameter(torch.ones(2))]  # one that no loss depends on
    found = record_norms(net(x).square().flatten(), parameters, scale=1024.0)
    for i in range(6):
        net.zero_grad()
        net(x[i]).square().sum().backward()
        truth = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        assert found[i].item() == pytest.approx(truth.item(), rel=1e-5)


class Watch(ClipAndNoise):
    """Keeps gradients before and after."""

    def transform_gradients(self, module, optimizer):
        before = {k: v.clone() for k, v in gradients_of(module, optimizer, "x").items()}
        super().transform_gradients(module, optimizer)
        after = {k: v.clone() for k, v in gradients_of(module, optimizer, "x").items()}
        self.seen = [*getattr(self, "seen", []), (before, after)]


def records_of(module, batch):
    losses = module.per_sample_loss(batch)
    names, parameters = zip(*module.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def first_batch(size):
    data = split_images(size)
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_training_by_record_shares_the_mean_of_clipped_gradients_with_noise(max_norm, tmp_path):
    batches = []

    class Sees(Watch):
        def objective(self, step):
            batches.append(records_of(step.module, step.batch))
            return super().objective(step)

    defence = Sees(max_norm, 0.3, seed=2)
    fitted = fit(tmp_path, tiny_classifier(), split_images(8), [defence], limit_train_batches=1)
    assert defence.resolved_unit == "record"
    truth = defence.defended_records(batches[0], StepNoise("clip_and_noise", 2).generator(0, "cpu"))
    assert not compare(defence.seen[0][1], truth, tolerance=1e-5)
    cut = fitted.trainer.callback_metrics["defence/clip_and_noise/clipped"].item()
    assert (cut > 0) == (max_norm < 1)


def test_accumulation_is_one_large_batch(tmp_path):
    one, two = (Watch(0.5, 1.0, "record", seed=0) for _ in range(2))
    fit(tmp_path, tiny_classifier(), split_images(8), [one], limit_train_batches=1)
    fit(tmp_path, tiny_classifier(), split_images(4), [two], limit_train_batches=2, accumulate_grad_batches=2)
    assert len(two.seen) == 1
    assert not compare(two.seen[0][1], one.seen[0][1], tolerance=1e-5)


def test_training_by_batch_and_sharing_use_the_same_function(tmp_path):
    defence = Watch(0.01, 0.5, "batch", seed=4)
    fit(tmp_path, tiny_classifier(), split_images(), [defence], limit_train_batches=2)
    for step, (before, after) in enumerate(defence.seen):
        assert not compare(
            after, defence.defended_update(before, StepNoise("clip_and_noise", 4).generator(step, "cpu"))
        )
        assert global_norm(before) > 0.01


def test_for_one_record_both_units_are_the_same():
    values = update(scale=10)
    defence = ClipAndNoise(1.0, 0.5)
    alone = defence.defended_records({k: v[None] for k, v in values.items()}, generator(7))
    assert not compare(alone, defence.defended_update(values, generator(7)), tolerance=1e-6)


def unit_of(folder, module, *others, data=split_images, unit="auto"):
    defence = ClipAndNoise(unit=unit)
    fit(folder, module, data(8), [defence, *others], limit_train_batches=1)
    return defence.resolved_unit


def test_what_is_clipped_is_chosen_by_what_the_module_offers(tmp_path):
    mixing = tiny_classifier()
    mixing.scores = nn.BatchNorm1d(4)
    smoothing = NegativeLabelSmoothing(factor=-0.1, warmup=0.0, ramp=0.0)
    assert unit_of(tmp_path, tiny_classifier()) == "record"
    assert unit_of(tmp_path, PlainRegressor(), data=plain_images) == "batch"
    assert unit_of(tmp_path, mixing) == "batch"
    assert unit_of(tmp_path, tiny_classifier(), smoothing) == "batch"


def test_records_that_cannot_be_clipped_are_an_error(tmp_path):
    with pytest.raises(MissingProtocolError, match=r"clip_and_noise needs `PlainRegressor.per_sample_loss`"):
        unit_of(tmp_path, PlainRegressor(), data=plain_images, unit="record")
    smoothing = NegativeLabelSmoothing(factor=-0.1, warmup=0.0, ramp=0.0)
    with pytest.raises(DefenceConflictError, match="would drop what `negative_label_smoothing` adds"):
        unit_of(tmp_path, tiny_classifier(), smoothing, unit="record")
    mixing = tiny_classifier()
    mixing.scores = nn.BatchNorm1d(4)
    with pytest.raises(DefenceConflictError, match="BatchNorm1d `scores` breaks. Set `unit: batch`"):
        unit_of(tmp_path, mixing, unit="record")


@pytest.mark.parametrize("other", [GradientPruning(), GradientNoise()])
def test_a_second_change_of_the_gradient_is_refused(other, tmp_path):
    with pytest.raises(DefenceConflictError, match=f"PLAIN_GRADIENTS.*`{other.name}` breaks. What clipping bounds"):
        unit_of(tmp_path, tiny_classifier(), other)


def test_the_trainers_own_clipping_is_refused(tmp_path):
    with pytest.raises(DefenceConflictError, match="TRAINER_CLIPPING_OFF.*`max_norm` clips before the noise"):
        fit(tmp_path, tiny_classifier(), split_images(), [ClipAndNoise()], gradient_clip_val=1.0)


@pytest.mark.parametrize("wrong", [{"max_norm": 0}, {"max_norm": float("inf")}, {"noise_multiplier": -1}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is"):
        ClipAndNoise(**wrong)


def test_the_likelihood_is_best_at_the_true_direction_and_knows_the_clipping():
    values, defence = update(scale=50), ClipAndNoise(1.0, 0.01)
    shared = defence.defended_update(values, generator())
    (attack,) = defence.informed_attacks()
    assert isinstance(attack, LeakageAttack) and attack.noise_multiplier == 0.01
    how = ClippedMatching(std=0.01, scale="absolute", max_norm=1.0)
    at = {s: how.data_term({k: s * v for k, v in values.items()}, shared).item() for s in (1.0, 3.0, -1.0)}
    assert at[1.0] == pytest.approx(at[3.0], rel=1e-3)  # how long the gradient was is lost
    assert at[1.0] == pytest.approx(0.5, abs=4 / 38**0.5) and at[-1.0] > 100 * at[1.0]


def test_no_privacy_is_claimed():
    assert "none claimed" in ClipAndNoise().guarantee and "Opacus" in ClipAndNoise().guarantee
