"""Noisy gradients: their law, their unit, where randomness comes from, and the attack that knows the noise."""

from dataclasses import replace

import lightning.pytorch as L
import pytest
import skimage.data
import torch
from scipy import stats
from sklearn.datasets import load_digits

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.callbacks.gradient_noise.attack import LikelihoodMatching, NoiseLikelihood
from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise
from lightning_privacy.callbacks.gradient_noise.functional import add_noise, noise_to_signal, spread
from lightning_privacy.callbacks.gradient_noise.private_seed import StepNoise
from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of
from lightning_privacy.core.conflicts import order_defences
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import split_images, tiny_classifier


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("distribution", "law"), [("gaussian", stats.norm(0, 3)), ("laplace", stats.laplace(0, 4.5**0.5))]
)
def test_absolute_noise_has_the_law_that_it_says(distribution, law):
    noise = add_noise({"w": torch.zeros(20_000)}, 3.0, generator(), distribution)["w"]
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 0.01


def test_relative_noise_grows_with_each_tensor_and_reaches_a_tensor_of_equal_numbers():
    update = {"large": torch.randn(20_000, generator=generator(1)) * 100, "equal": torch.full((20_000,), 1e-3)}
    noisy = add_noise(update, 0.5, generator(), scale="relative")
    for name, value in update.items():
        assert (noisy[name] - value).std().item() == pytest.approx(0.5 * value.square().mean().sqrt().item(), rel=0.03)
    assert noise_to_signal(update, noisy).item() == pytest.approx(0.5, rel=0.03)
    alone = add_noise({"bias": torch.tensor([2.0])}, 1.0, generator(), scale="relative")
    assert alone["bias"].item() != 2.0


def test_spread_does_not_underflow_and_empty_tensors_pass():
    assert spread(torch.full((3,), 1e-30)).item() == pytest.approx(1e-30)
    assert add_noise({"none": torch.empty(0, 3)}, 1.0, generator(), scale="relative")["none"].shape == (0, 3)


def test_noise_is_drawn_in_float32_and_the_type_is_kept():
    noisy = add_noise({"w": torch.ones(4, dtype=torch.bfloat16)}, 1.0, generator())["w"]
    assert noisy.dtype == torch.bfloat16
    truth = add_noise({"w": torch.ones(4)}, 1.0, generator())["w"]
    assert torch.equal(noisy, truth.bfloat16())


def test_without_strength_nothing_is_drawn():
    source, update = generator(), {"w": torch.ones(2)}
    state = source.get_state()
    assert add_noise(update, 0, source)["w"] is update["w"]
    assert torch.equal(source.get_state(), state)


class Watch(GradientNoise):
    """Keeps gradients before and after."""

    def transform_gradients(self, module, optimizer):
        before = {k: v.clone() for k, v in gradients_of(module, optimizer, "x").items()}
        super().transform_gradients(module, optimizer)
        after = {k: v.clone() for k, v in gradients_of(module, optimizer, "x").items()}
        self.seen = [*getattr(self, "seen", []), (before, after)]


def run(folder, defence, **options):
    fit(folder, tiny_classifier(), split_images(), [defence], **{"limit_train_batches": 2, **options})
    return defence.seen


def test_noise_of_a_step_is_a_function_of_seed_and_step(tmp_path):
    def noise(seed):
        return [
            b["network.head.bias"] - a["network.head.bias"] for a, b in run(tmp_path, Watch(0.1, "absolute", seed=seed))
        ]

    one, again, other = noise(0), noise(0), noise(1)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_training_and_sharing_use_the_same_function(tmp_path):
    defence = Watch(0.7, distribution="laplace", seed=3)
    for step, (before, after) in enumerate(run(tmp_path, defence)):
        source = StepNoise("gradient_noise", 3).generator(step, "cpu")
        assert not compare(after, defence.defended_update(before, source))


def test_an_unknown_seed_differs_between_runs_and_is_kept_in_the_state_alone(tmp_path):
    one, other, given = Watch(0.1), Watch(0.1), Watch(0.1, seed=5)
    for defence in (one, other, given):
        run(tmp_path, defence)
    assert one.state_dict()["seed"] != other.state_dict()["seed"]
    assert one.init_args["seed"] is None and given.state_dict() == {}
    resumed = Watch(0.1)
    resumed.load_state_dict(one.state_dict())
    assert resumed.state_dict() == one.state_dict()
    with pytest.raises(InputError, match="has no seed before training starts"):
        StepNoise("gradient_noise", None).generator(0, "cpu")


def test_the_trainers_clipping_shortens_gradient_and_noise_alike(tmp_path):
    defence = Watch(1.0, seed=0)
    used = {}

    class Used(L.Callback):
        def on_train_start(self, trainer, pl_module):
            keep = lambda optimizer, *_: used.update(gradients_of(pl_module, optimizer, "x"))  # noqa: E731
            trainer.optimizers[0].register_step_post_hook(keep)

    options = {"limit_train_batches": 1, "gradient_clip_val": 1e-3}
    fit(tmp_path, tiny_classifier(), split_images(), [defence, Used()], **options)
    noisy = defence.seen[0][1]
    shares = torch.cat([(used[k] / noisy[k])[noisy[k] != 0].flatten() for k in noisy])
    assert shares.max() < 0.1 and torch.allclose(shares, shares[:1], rtol=1e-4)


def test_pruning_comes_first_and_its_zeros_are_hidden(tmp_path):
    pruning, noise = GradientPruning(0.9), Watch(0.5, seed=0)
    assert [d.name for d in order_defences([noise, pruning])] == ["gradient_pruning", "gradient_noise"]
    fit(tmp_path, tiny_classifier(), split_images(), [noise, pruning], limit_train_batches=1)
    before, after = noise.seen[0]
    weight = "network.conv2.weight"
    assert (before[weight] == 0).float().mean() > 0.85
    assert (after[weight] != 0).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"std": -1}, "`std` is"), ({"std": float("inf")}, "`std` is"), ({"std": float("nan")}, "`std` is")],
)
def test_arguments_out_of_range_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        GradientNoise(**wrong)


@pytest.mark.parametrize(("distribution", "law"), [("gaussian", stats.norm()), ("laplace", stats.laplace(0, 0.5**0.5))])
@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_the_likelihood_is_that_of_scipy_up_to_its_constant(distribution, law, scale):
    clean = {"w": torch.randn(5_000, generator=generator(1), dtype=torch.float64)}
    clean["w"] *= 3 / spread(clean["w"])  # so that the relative unit is 3
    std = 0.5 if scale == "absolute" else 0.5 / 3
    noisy = add_noise(clean, std, generator(), distribution, scale)
    how = LikelihoodMatching(std=std, scale=scale, distribution=distribution)

    def surprise(guess):
        return -law.logpdf(((guess - noisy["w"]) / 0.5).numpy()).mean()

    other = clean["w"] + 0.2
    truth = surprise(other) - surprise(clean["w"])
    found = how.data_term({"w": other}, noisy) - how.data_term(clean, noisy)
    assert found.item() == pytest.approx(truth, rel=1e-9 if scale == "absolute" else 0.03)


def test_the_attack_that_knows_the_noise_converges_and_beats_the_one_that_does_not():
    torch.manual_seed(0)
    net, picture = LeakageLeNet(6, 1, 8, width=8).double(), torch.tensor(load_digits().images[:1]).unsqueeze(1) / 16
    update, defence = share_update(net, picture, torch.tensor([4]), tell="labels"), GradientNoise(0.1)
    update = replace(update, values=defence.defended_update(dict(update.values), generator()))
    search = DeepLeakage(evaluations=80, restarts=1)
    (knowing,) = defence.informed_attacks()
    assert isinstance(knowing, LeakageAttack) and knowing.std == 0.1
    found, oblivious = (
        a.reconstruct(target_of(net, (1, 8, 8), 6), update, 0) for a in (replace(knowing, attack=search), search)
    )
    ssim = [paired_similarity(f.pictures, picture.float())["ssim"].item() for f in (found, oblivious)]
    assert found.converged and not oblivious.converged
    assert ssim[0] > ssim[1]


def test_a_prior_of_smooth_pictures_sees_through_noise_as_long_as_the_signal():
    torch.manual_seed(0)
    face = torch.from_numpy(skimage.data.lfw_subset()[:1, :24, :24]).double().unsqueeze(1)
    net = LeakageLeNet(6, 1, 24, width=8).double()
    update = share_update(net, face, torch.tensor([4]), tell="labels")
    update = replace(update, values=add_noise(dict(update.values), 1.0, generator(), scale="relative"))
    attack = NoiseLikelihood(1.0, attack=DeepLeakage(evaluations=150, restarts=1))
    smooth, rough = (
        replace(attack, total_variation=weight).reconstruct(target_of(net, (1, 24, 24), 6), update, 0)
        for weight in (attack.total_variation, 0)
    )
    ssim = [paired_similarity(f.pictures, face.float())["ssim"].item() for f in (smooth, rough)]
    assert ssim[0] > 1.5 * ssim[1]
    assert rough.matching_loss < smooth.matching_loss < 0.55  # the noise's own share is 0.5, and less of it was fitted


def test_without_noise_the_attack_is_the_search_itself():
    torch.manual_seed(0)
    net, picture = LeakageLeNet(6, 1, 8, width=8).double(), torch.tensor(load_digits().images[:1]).unsqueeze(1) / 16
    update, target = share_update(net, picture, torch.tensor([4])), target_of(net, (1, 8, 8), 6)
    found = NoiseLikelihood(0, attack=DeepLeakage(evaluations=40, restarts=1)).reconstruct(target, update, 0)
    assert found.matching_loss < 1e-3 * found.start_loss
