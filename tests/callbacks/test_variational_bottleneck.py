"""The variational bottleneck: its rate and draws in closed form, its surgery, and what it does to training."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA
from lightning_privacy.callbacks.variational_bottleneck.callback import VariationalBottleneck
from lightning_privacy.callbacks.variational_bottleneck.functional import bottleneck_objective, rate, reparameterise
from lightning_privacy.callbacks.variational_bottleneck.layers import GaussianBottleneck
from lightning_privacy.core.channels import ChannelLinear, channels_of
from lightning_privacy.core.conflicts import order_defences
from lightning_privacy.core.manifest import load_defended
from lightning_privacy.core.taps import recorded
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import split_images, tiny_classifier

TAP = "network.conv1"
PICTURES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def seen(module, name=TAP):
    with recorded(module, [name]) as values, torch.no_grad():
        module.logits({"image": PICTURES})
    return values[name]


@given(st.integers(0, 2**31), st.sampled_from([(3,), (2, 5), (4, 3, 3)]))
def test_rate_is_the_divergence_of_torch_distributions(seed, shape):
    g = torch.Generator().manual_seed(seed)
    mean, log_variance = (3 * torch.randn(6, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    truth = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(rate(mean, log_variance), truth)


def test_rate_is_zero_at_the_prior_and_precise_near_it():
    assert rate(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]
    near = torch.full((1, 1), 1e-3)
    assert rate(torch.zeros(1, 1), near).item() == pytest.approx(1e-6 / 4, rel=1e-3)


def test_draws_have_the_mean_and_deviation_of_the_heads():
    mean, log_variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 2 * math.log(3)]])
    noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    z = reparameterise(mean.expand(40_000, 2), log_variance.expand(40_000, 2), noise)
    assert z.mean(0).tolist() == pytest.approx([2, -1], abs=0.05)
    assert z.std(0).tolist() == pytest.approx([1, 3], rel=0.02)


def test_objective_adds_the_mean_rate():
    assert bottleneck_objective(torch.tensor(1.0), torch.tensor([2.0, 4.0]), 0.5).item() == 2.5


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 6, 3, 3)])
def test_heads_map_channels_alone(shape):
    layer = ChannelLinear(6, 2)
    x = torch.randn(*shape)
    channel = 1 if x.ndim == 4 else -1
    truth = (x.movedim(channel, -1) @ layer.weight.T + layer.bias).movedim(-1, channel)
    assert torch.allclose(layer(x), truth, atol=1e-6)
    if x.ndim == 4:
        conv = nn.Conv2d(6, 2, 1)
        conv.weight.data, conv.bias.data = layer.weight.data[:, :, None, None], layer.bias.data
        assert torch.allclose(layer(x), conv(x), atol=1e-6)


def test_width_is_read_from_the_last_layer_that_has_one():
    assert channels_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), "a") == 8
    assert channels_of(nn.ReLU(), "a", 5) == 5
    with pytest.raises(InputError, match=r"output of `a` \(a ReLU\) is written nowhere"):
        channels_of(nn.ReLU(), "a")
    with pytest.raises(InputError, match="bottleneck for 5 channels got a tensor of shape"):
        GaussianBottleneck(nn.Identity(), 5)(torch.zeros(2, 4))


def test_each_record_has_a_latent_of_its_own_and_starts_near_the_layers_output():
    module = tiny_classifier()
    clean = seen(module)
    report = VariationalBottleneck(TAP, initial_std=0.2).surgery(module)
    assert report.layers == (TAP,)
    assert report.parameters_added == 2 * (4 * 4 + 4)
    for mode in (True, False):
        module.train(mode)
        drawn = seen(module) - clean
        assert drawn.shape == clean.shape
        assert drawn.std().item() == pytest.approx(0.2, rel=0.1)
        assert abs(torch.corrcoef(drawn.flatten(1))[0, 1]) < 0.2
    assert not torch.equal(seen(module), seen(module))


def test_without_sampling_evaluation_passes_the_mean_on_and_training_still_draws():
    module = tiny_classifier()
    clean = seen(module)
    VariationalBottleneck(TAP, sample_at_inference=False).surgery(module)
    module.eval()
    assert torch.allclose(seen(module), clean, atol=1e-6)
    module.train()
    assert not torch.equal(seen(module), seen(module))


def test_gradients_reach_the_layer_and_both_heads_from_loss_and_rate():
    layer = GaussianBottleneck(nn.Linear(3, 5), 5)
    for what in ("loss", "rate"):
        layer.zero_grad()
        layer.listen()
        out = layer(torch.randn(6, 3))
        (out.square().sum() if what == "loss" else layer.heard().sum()).backward()
        for name in ("inner.weight", "mean.weight", "mean.bias", "log_variance.weight", "log_variance.bias"):
            assert layer.get_parameter(name).grad.abs().sum() > 0, (what, name)


def test_rates_are_those_of_the_first_pass_that_takes_a_gradient():
    layer = GaussianBottleneck(nn.Identity(), 2, initial_std=1.0)
    layer(torch.ones(1, 2))
    assert layer.heard() is None
    layer.listen()
    with torch.no_grad():
        layer(torch.zeros(9, 2))
    layer(torch.full((3, 2), 2.0))
    layer(torch.zeros(5, 2))
    copied = copy.deepcopy(layer)  # in the middle of a step, with a graph
    assert copied.heard() is None
    assert layer.heard().tolist() == pytest.approx([4.0, 4.0, 4.0])
    assert layer.heard() is None


def test_a_larger_beta_lowers_the_rate(tmp_path):
    def final(beta):
        module = fit(
            tmp_path, tiny_classifier(), split_images(), [VariationalBottleneck(TAP, beta)], max_epochs=3
        ).module
        layer = module.network.conv1
        layer.listen()
        module.logits({"image": PICTURES})
        return layer.heard().mean().item()

    assert final(1e-2) < 0.8 * final(0)


def test_the_rate_is_in_the_loss_and_is_logged(tmp_path):
    losses = []

    class Reads(VariationalBottleneck):
        def objective(self, step):
            rates = step.module.network.conv1._rates
            out = super().objective(step)
            assert out.item() == pytest.approx(step.loss.item() + 0.5 * rates.mean().item(), rel=1e-6)
            losses.append(rates.mean().item())
            return out

    fitted = fit(tmp_path, tiny_classifier(), split_images(), [Reads(TAP, 0.5)], limit_train_batches=2)
    assert len(losses) == 2
    assert fitted.trainer.callback_metrics["defence/variational_bottleneck/rate"].item() == pytest.approx(losses[-1])


def test_it_follows_smp_lora_whose_ratio_would_drop_the_rate():
    names = [d.name for d in order_defences([VariationalBottleneck(TAP), SMPLoRA()])]
    assert names == ["smp_lora", "variational_bottleneck"]


def test_surgery_twice_is_surgery_once():
    module, defence = tiny_classifier(), VariationalBottleneck("*work.conv1*")
    first = defence.surgery(module)
    layer = module.network.conv1
    assert defence.surgery(module) == first
    assert module.network.conv1 is layer
    assert isinstance(layer.inner, nn.Conv2d)


def test_a_checkpoint_is_loaded_with_its_bottleneck(tmp_path):
    defence = VariationalBottleneck(TAP, sample_at_inference=False)
    fitted = fit(tmp_path, tiny_classifier(), split_images(), [defence], limit_train_batches=2)
    fitted.trainer.save_checkpoint(tmp_path / "vib.ckpt")
    loaded = load_defended(tiny_classifier(), tmp_path / "vib.ckpt")
    assert not compare(dict(loaded.state_dict()), fitted.weights)
    loaded.eval()
    assert torch.equal(seen(loaded), seen(fitted.module.eval()))


def test_a_tap_that_means_no_layer_is_one_clear_error(tmp_path):
    with pytest.raises(NoEffectError, match="No layer of TinyClassifier is called `conv9`"):
        fit(tmp_path, tiny_classifier(), split_images(), [VariationalBottleneck("conv9")])


def test_a_layer_that_is_not_called_is_an_error(tmp_path):
    module = tiny_classifier()
    module.spare = nn.Linear(2, 2)
    with pytest.raises(NoEffectError, match="the training step did not call `spare`"):
        fit(tmp_path, module, split_images(), [VariationalBottleneck("spare")])


@pytest.mark.parametrize("wrong", [{"beta": -1}, {"beta": math.nan}, {"initial_std": 0}, {"features": 0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is"):
        VariationalBottleneck(TAP, **wrong)
