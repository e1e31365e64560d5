"""Noise at a tap: its statistics, its bounds, where it acts, and what it leaves alone."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from scipy import stats
from torch import nn

from lightning_privacy.callbacks.noise_tap.callback import NoiseTap
from lightning_privacy.callbacks.noise_tap.functional import (
    add_noise,
    bounded,
    gaussian_delta,
    laplace_epsilon,
    sensitivity,
    unit_noise,
)
from lightning_privacy.callbacks.noise_tap.layers import AddNoise
from lightning_privacy.core.layer_hooks import attach, hooks_of
from lightning_privacy.core.manifest import load_defended
from lightning_privacy.core.step_randomness import StepRandomness
from lightning_privacy.core.taps import recorded
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.testing.dummy_defences import SurgeryDummy
from lightning_privacy.testing.fitting import compare, fit, quiet
from lightning_privacy.testing.settings import split_images, tiny_classifier

TAP = "network.conv1"
PICTURES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def defended(**arguments):
    module = tiny_classifier()
    report = NoiseTap(**{"tap": TAP, "sigma": 0.5, **arguments}).surgery(module)
    return module, report


def seen(module, name=TAP):
    with recorded(module, [name]) as values, torch.no_grad():
        module.logits({"image": PICTURES})
    return values[name]


@pytest.mark.parametrize(("distribution", "law"), [("gaussian", stats.norm()), ("laplace", stats.laplace(0, 0.5**0.5))])
def test_noise_has_the_distribution_that_it_says(distribution, law):
    drawn = unit_noise(torch.empty(20_000), distribution, torch.Generator().manual_seed(1))
    assert stats.kstest(drawn.numpy(), law.cdf).pvalue > 0.01
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    assert drawn.isfinite().all()


def test_noise_scales_with_sigma_and_keeps_the_type():
    half = torch.zeros(50_000, dtype=torch.bfloat16)
    noisy = add_noise(half, 3, "laplace", torch.Generator().manual_seed(0))
    assert noisy.dtype == torch.bfloat16
    assert noisy.float().std().item() == pytest.approx(3, rel=0.03)


def test_bounds_hold_for_each_number_or_for_each_record():
    z = torch.randn(5, 2, 3, 3) * torch.tensor([0.01, 1, 10, 100, 0]).view(5, 1, 1, 1)
    assert torch.equal(bounded(z, 2, "clip"), z.clamp(-2, 2))
    assert bounded(z, 2, "tanh").abs().max() <= 2
    assert torch.allclose(bounded(z[:1], 2, "tanh"), z[:1], atol=1e-4)
    for distribution, order in (("gaussian", 2), ("laplace", 1)):
        rows = bounded(z, 2, "norm", distribution).flatten(1)
        norms, before = rows.norm(order, dim=1), z.flatten(1).norm(order, dim=1)
        assert torch.allclose(norms, before.clamp_max(2), rtol=1e-5)
        assert torch.allclose(rows[3] / norms[3], z.flatten(1)[3] / before[3], atol=1e-6)
    large = torch.full((1, 4), 1000, dtype=torch.float16)  # whose squares overflow in half precision
    assert bounded(large, 1, "norm").float().norm().item() == pytest.approx(1, rel=1e-3)


def test_epsilon_and_delta_agree_with_their_definitions():
    # Laplace: the largest log-ratio of the two densities, at a point beyond both centres.
    one, other = stats.laplace(0, 2 / math.sqrt(2)), stats.laplace(3, 2 / math.sqrt(2))
    assert laplace_epsilon(3, 2) == pytest.approx(one.logpdf(-1) - other.logpdf(-1))
    # Gaussian: delta is the integral of the positive part of p - e^epsilon q.
    at, epsilon, delta, sigma = np.linspace(-30, 30, 600_001), 0.7, 1.5, 2.0
    gap = stats.norm(0, sigma).pdf(at) - math.exp(epsilon) * stats.norm(delta, sigma).pdf(at)
    assert gaussian_delta(epsilon, delta, sigma) == pytest.approx(gap.clip(0).sum() * (at[1] - at[0]), rel=1e-6)
    assert gaussian_delta(0, 1, 1) == pytest.approx(2 * stats.norm.cdf(0.5) - 1)  # total variation
    assert gaussian_delta(5_000, 200, 1) == pytest.approx(1)  # e^5000 is no float


def test_sensitivity_is_reached_by_the_farthest_pair():
    far = torch.tensor([[5.0, 7.0, 9.0], [-5.0, -7.0, -9.0]])
    for bounding in ("clip", "norm"):
        for distribution, order in (("laplace", 1), ("gaussian", 2)):
            a, b = bounded(far, 2, bounding, distribution)
            assert (a - b).norm(order).item() == pytest.approx(sensitivity(2, bounding, distribution, 3), rel=1e-5)


def test_who_listens_at_the_tap_sees_noise_in_training_and_at_inference():
    clean = seen(tiny_classifier())
    module, report = defended(sigma=0.5)
    assert report.layers == (TAP,) and report.parameters_added == 0
    for mode in (True, False):
        module.train(mode)
        one, other = seen(module), seen(module)
        assert (one - clean).std().item() == pytest.approx(0.5, rel=0.1)
        assert not torch.equal(one, other)
        assert abs(torch.corrcoef(torch.stack([(one - clean)[0].flatten(), (one - clean)[1].flatten()]))[0, 1]) < 0.2


def test_noise_reaches_the_logits_and_a_hook_that_was_there_first():
    module = tiny_classifier()
    heard = []
    module.network.conv1.register_forward_hook(lambda *x: heard.append(x[2]))
    clean = module.logits({"image": PICTURES})
    NoiseTap(TAP, 0.5).surgery(module)
    assert not torch.allclose(module.logits({"image": PICTURES}), clean, atol=1e-3)
    assert (heard[1] - heard[0]).std().item() == pytest.approx(0.5, rel=0.1)


def test_sigma_zero_is_the_identity_and_draws_nothing():
    module, _ = defended(sigma=0)
    before = torch.get_rng_state()
    assert torch.equal(seen(module), seen(tiny_classifier()))
    assert torch.equal(torch.get_rng_state(), before)
    module, _ = defended(sigma=0, bound=0.1)
    assert torch.equal(seen(module), seen(tiny_classifier()).clamp(-0.1, 0.1))


def test_noise_at_inference_comes_from_the_global_state_that_an_audit_isolates():
    module, _ = defended()
    torch.manual_seed(3)
    one = seen(module)
    torch.manual_seed(3)
    assert torch.equal(seen(module), one)
    before = torch.get_rng_state()
    with isolate_rng():
        seen(module)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_in_a_step_is_a_function_of_its_key_and_differs_between_passes():
    def draw(*key):
        source = StepRandomness()
        source.begin(*key)
        return [torch.rand(3, generator=source.generator("cpu")) for _ in range(2)]

    one, again, other = draw(0, 1), draw(0, 1), draw(0, 2)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_training_leaves_the_users_random_stream_alone_and_ends_with_the_global_state(tmp_path):
    plain = fit(tmp_path, tiny_classifier(), split_images())
    noisy = fit(tmp_path, tiny_classifier(), split_images(), [NoiseTap(TAP, 0.5)], limit_val_batches=0)
    calm = fit(tmp_path, tiny_classifier(), split_images(), limit_val_batches=0)
    assert not compare(noisy.random_state, calm.random_state)
    assert compare(noisy.weights, plain.weights)
    assert set(noisy.weights) == set(plain.weights)
    assert hooks_of(noisy.module, "noise_tap")[0].change.randomness.key is None


def test_gradients_flow_through_noise_and_soft_bounds():
    noise = AddNoise(1.0, "laplace", 2.0, "tanh")
    x = torch.randn(3, 4, requires_grad=True)
    noise(x).sum().backward()
    assert torch.allclose(x.grad, 1 - torch.tanh(x.detach() / 2).square(), atol=1e-6)


def test_surgery_twice_is_surgery_once_and_takes_over_new_settings():
    module, first = defended()
    assert NoiseTap(TAP, 0.5).surgery(module) == first
    assert len(module.network.conv1._forward_hooks) == 1
    NoiseTap(TAP, 0.0).surgery(module)
    assert torch.equal(seen(module), seen(tiny_classifier()))
    with pytest.raises(InputError, match="already has `noise_tap` at network.conv1"):
        NoiseTap("network.conv2", 0.5).surgery(module)


def test_surgery_is_found_again_behind_another_wrapper():
    module, first = defended()
    SurgeryDummy([TAP]).surgery(module)
    assert NoiseTap(TAP, 0.5).surgery(module) == first
    assert len(hooks_of(module, "noise_tap")) == 1


def test_copies_and_pickles_are_noisy_too():
    module, _ = defended()
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not torch.equal(seen(copied), seen(tiny_classifier()))


def test_a_checkpoint_is_loaded_with_its_noise(tmp_path):
    fitted = fit(tmp_path, tiny_classifier(), split_images(), [NoiseTap(TAP, 0.5)], limit_train_batches=1)
    fitted.trainer.save_checkpoint(tmp_path / "noisy.ckpt")
    loaded = load_defended(tiny_classifier(), tmp_path / "noisy.ckpt")
    assert not compare(dict(loaded.state_dict()), fitted.weights)
    assert (seen(loaded) - seen(loaded)).std().item() == pytest.approx(0.5 * math.sqrt(2), rel=0.1)


def test_a_test_run_without_training_is_noisy(tmp_path):
    module = tiny_classifier()
    data = split_images()
    data.test_dataloader = data.val_dataloader
    trainer = fit(tmp_path, tiny_classifier(), split_images(), limit_train_batches=1).trainer
    trainer.callbacks.append(NoiseTap(TAP, 0.5))
    with quiet():
        trainer.test(module, data, verbose=False)
    assert not torch.equal(seen(module), seen(tiny_classifier()))


@pytest.mark.parametrize(
    ("tap", "error", "words"),
    [
        ("network.conv9", NoEffectError, "No layer of TinyClassifier is called `network.conv9`"),
        ("network.conv*", InputError, r"matches 2 layers of TinyClassifier \(network.conv1, network.conv2"),
    ],
)
def test_a_tap_that_means_no_layer_or_several_is_one_clear_error(tap, error, words, tmp_path):
    with pytest.raises(error, match=words):
        fit(tmp_path, tiny_classifier(), split_images(), [NoiseTap(tap, 0.5)])


def test_a_layer_that_is_not_called_is_an_error(tmp_path):
    module = tiny_classifier()
    module.spare = nn.Identity()
    with pytest.raises(NoEffectError, match="`noise_tap`: the training step did not call spare"):
        fit(tmp_path, module, split_images(), [NoiseTap("spare", 0.5)])


def test_noise_that_was_lost_is_an_error(tmp_path):
    class Replaces(NoiseTap):
        def surgery(self, module):
            report = super().surgery(module)
            module.network.conv1 = copy.deepcopy(tiny_classifier().network.conv1)
            return report

    with pytest.raises(NoEffectError, match="`noise_tap` is no longer attached to any layer"):
        fit(tmp_path, tiny_classifier(), split_images(), [Replaces(TAP, 0.5)])


def test_running_again_in_the_backward_pass_is_refused():
    noise = AddNoise(1.0)
    noise.randomness.begin(0)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="runs again in the backward pass"):
        torch.utils.checkpoint.checkpoint(lambda y: noise(y).square(), x, use_reentrant=False).sum().backward()


def test_an_output_that_is_no_tensor_is_an_error():
    net = nn.LSTM(2, 2)
    attach(net_holder := nn.ModuleDict({"rnn": net}), "noise_tap", ["rnn"], AddNoise(1.0))
    with pytest.raises(InputError, match="output of `rnn`, which is a tuple"):
        net_holder["rnn"](torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    "wrong", [{"sigma": -1}, {"sigma": math.inf}, {"bound": 0}, {"sigma": math.nan}, {"bound": math.nan}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is"):
        NoiseTap(**{"tap": TAP, "sigma": 1.0, **wrong})
