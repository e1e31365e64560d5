"""The bottleneck before the head: where it goes, what it charges, and the attack that searches for its draw."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal, kl_divergence

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.local_steps import simulated_update
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.callbacks.gradient_bottleneck.attack import LatentSearch, with_drawn_noise
from lightning_privacy.callbacks.gradient_bottleneck.callback import GradientBottleneck
from lightning_privacy.callbacks.gradient_bottleneck.layers import BottleneckedHead
from lightning_privacy.callbacks.variational_bottleneck.callback import VariationalBottleneck
from lightning_privacy.core import registry
from lightning_privacy.core.manifest import load_defended
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import split_images, tiny_classifier
from lightning_privacy.testing.tiny_modules import TinyDenoiser

HEAD = "network.head"
PICTURES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def defended(**arguments):
    module = tiny_classifier()
    defence = GradientBottleneck(**{"head": HEAD, "latents": 5, **arguments})
    return module, defence, defence.surgery(module)


def scores(module):
    with torch.no_grad():
        return module.network(PICTURES)


def test_the_head_reads_decoded_latents_and_names_say_what_is_what():
    module, _, report = defended()
    layer = module.network.head
    assert report.layers == (HEAD,)
    features = layer.head.in_features
    assert report.parameters_added == 2 * 5 * (features + 1) + features * (5 + 1)
    module.eval()
    hidden = torch.randn(3, features)
    mean = hidden @ layer.latent.mean.weight.T + layer.latent.mean.bias
    truth = layer.head(mean @ layer.decoder.weight.T + layer.decoder.bias)
    assert torch.allclose(layer(hidden), truth, atol=1e-6)
    module.train()
    assert not torch.equal(layer(hidden), layer(hidden))


def test_the_last_linear_layer_is_the_head_unless_one_is_named():
    module = tiny_classifier()
    module.later = nn.Linear(2, 2)
    assert GradientBottleneck(latents=5).surgery(module).layers == ("later",)
    assert GradientBottleneck("*.head", 5).surgery(tiny_classifier()).layers == (HEAD,)


def test_surgery_twice_is_surgery_once_and_takes_over_whether_it_samples():
    module, defence, first = defended()
    layer = module.network.head
    assert defence.surgery(module) == first and module.network.head is layer
    GradientBottleneck(HEAD, 5, sample_at_inference=True).surgery(module)
    module.eval()
    assert not torch.equal(scores(module), scores(module))
    GradientBottleneck(HEAD, 5).surgery(module)
    assert torch.equal(scores(module), scores(module))


def test_the_loss_pays_for_the_divergence_of_torch_distributions(tmp_path):
    seen = []

    class Reads(GradientBottleneck):
        def objective(self, step):
            features = []
            latent = step.module.network.head.latent
            handle = latent.mean.register_forward_hook(lambda m, i, out: features.append(i[0]))
            with torch.no_grad():
                step.module.logits(step.batch)
            handle.remove()
            mean, variance = latent.mean(features[0]), latent.log_variance(features[0])
            truth = kl_divergence(Normal(mean, (variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
            out = super().objective(step)
            seen.append((out.item(), step.loss.item() + 0.5 * truth.item()))
            return out

    fitted = fit(tmp_path, tiny_classifier(), split_images(), [Reads(HEAD, 5, 0.5)], limit_train_batches=1)
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-5)
    assert fitted.trainer.callback_metrics["defence/gradient_bottleneck/rate"].item() > 0


def test_draws_of_a_given_seed_repeat_and_others_do_not(tmp_path):
    def weights(seed):
        defence = GradientBottleneck(HEAD, 5, seed=seed)
        return fit(tmp_path, tiny_classifier(), split_images(), [defence], limit_train_batches=2).weights

    assert not compare(weights(1), weights(1))
    assert compare(weights(None), weights(None))


def test_a_checkpoint_is_loaded_with_its_bottleneck(tmp_path, monkeypatch):
    targets = {**registry.DEFENCES._targets, "gradient_bottleneck": GradientBottleneck}
    monkeypatch.setattr(registry.DEFENCES, "_targets", targets)
    defence = GradientBottleneck(HEAD, 5)
    fitted = fit(tmp_path, tiny_classifier(), split_images(), [defence], limit_train_batches=1)
    fitted.trainer.save_checkpoint(tmp_path / "b.ckpt")
    loaded = load_defended(tiny_classifier(), tmp_path / "b.ckpt")
    assert not compare(dict(loaded.state_dict()), fitted.weights)
    assert torch.equal(scores(loaded.eval()), scores(fitted.module.eval()))


def test_it_shares_a_module_with_the_bottleneck_of_a_hidden_layer(tmp_path):
    both = [GradientBottleneck(HEAD, 5), VariationalBottleneck("network.conv1")]
    module = fit(tmp_path, tiny_classifier(), split_images(), both, limit_train_batches=1).module
    assert isinstance(module.network.head, BottleneckedHead)
    assert type(module.network.conv1).__name__ == "GaussianBottleneck"


def test_heads_that_are_not_there_not_linear_or_not_called_are_errors(tmp_path):
    with pytest.raises(NoEffectError, match="found no linear layer in TinyDenoiser"):
        fit(tmp_path, TinyDenoiser(), split_images(), [GradientBottleneck()])
    with pytest.raises(InputError, match=r"before a linear head, but `network.conv1` is a Conv2d"):
        fit(tmp_path, tiny_classifier(), split_images(), [GradientBottleneck("network.conv1")])
    module = tiny_classifier()
    module.spare = nn.Linear(2, 2)
    with pytest.raises(NoEffectError, match="the training step did not call `spare`"):
        fit(tmp_path, module, split_images(), [GradientBottleneck("spare")])


@pytest.mark.parametrize("wrong", [{"latents": 0}, {"beta": -1}, {"beta": math.nan}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is"):
        GradientBottleneck(**wrong)


def attacked():
    torch.manual_seed(0)
    net = LeakageLeNet(6, 1, 8, width=8)
    net.head = BottleneckedHead(net.head, 16)
    picture = torch.tensor(load_digits().images[:1]).unsqueeze(1) / 16
    return net.double(), picture


def test_the_view_with_the_true_draw_makes_the_shared_update():
    net, picture = attacked()
    state = torch.get_rng_state()
    update = share_update(net, picture, torch.tensor([4]))
    torch.set_rng_state(state)
    true = torch.randn(1, 16, dtype=torch.float64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    view = with_drawn_noise(target_of(net, (1, 8, 8), 6), 1)
    assert torch.equal(torch.get_rng_state(), before)
    found = simulated_update(view, view.complete({"head.latent.noise": true}), picture, torch.tensor([4]), update)
    assert not compare(found, dict(update.values), tolerance=1e-12)
    with pytest.raises(InputError, match="no bottleneck that draws in this mode"):
        with_drawn_noise(target_of(net, (1, 8, 8), 6), 1, "eval")


@pytest.mark.parametrize("skip", [False, True])
def test_an_attack_that_searches_for_the_draw_reads_the_picture(skip):
    net, picture = attacked()
    update, target = share_update(net, picture, torch.tensor([4])), target_of(net, (1, 8, 8), 6)
    search = DeepLeakage(evaluations=90, restarts=1)
    attack = LatentSearch(search, skip)
    assert isinstance(attack, LeakageAttack)
    found = attack.reconstruct(target, update, 0)
    assert paired_similarity(found.pictures, picture.float())["ssim"].item() > 0.7
    assert found.secrets["head.latent.noise"].shape == (1, 16)
