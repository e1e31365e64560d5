"""The controls: each does the one thing that it says, exactly, and trains like any defence."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_privacy.callbacks.inversion_controls import callback as controls
from lightning_privacy.callbacks.inversion_controls.functional import (
    keep_largest,
    kept_count,
    matched_width,
    standardised,
    unit_norm_filters,
)
from lightning_privacy.callbacks.inversion_controls.layers import FrozenRandomConv2d, first_convolutions
from lightning_privacy.callbacks.noise_tap.callback import NoiseTap
from lightning_privacy.core.registry import defence_names
from lightning_privacy.core.taps import recorded
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.testing.contract import CHECKS
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import DefenceCase, split_images, tiny_classifier

TAP = "network.conv1"
PICTURES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CASES = {
    case.name: case
    for case in (
        DefenceCase(controls.StandardizeOnly, {"layers": 2}, None, tiny_classifier),
        DefenceCase(controls.FrozenRandomConv, {"layers": 1}, None, tiny_classifier),
        DefenceCase(controls.TopKActivations, {"tap": TAP, "fraction": 0.3}, {"fraction": 1.0}, tiny_classifier),
        DefenceCase(controls.WidthMatchedBottleneck, {"tap": TAP, "width": 2}, None, tiny_classifier),
    )
}


def seen(module, name=TAP):
    with recorded(module, [name]) as values:
        module.logits({"image": PICTURES})
    return values[name]


def test_controls_are_no_registered_defences():
    assert not set(CASES) & set(defence_names())
    assert all(case.build().adaptive_attacks == () for case in CASES.values())


@pytest.mark.parametrize(
    "check",
    ["zero_strength", "resume", "leaves_module_clean", "requirements", "keeps_arguments", "arguments_round_trip"],
)
@pytest.mark.parametrize("name", CASES)
def test_controls_keep_the_contract(name, check, tmp_path):
    CHECKS[check](CASES[name], tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_surgery_twice_is_surgery_once(name):
    module, control = tiny_classifier(), CASES[name].build()
    first = control.surgery(module)
    layers = list(module.modules())
    assert first.layers
    assert control.surgery(module) == first
    assert list(module.modules()) == layers


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_layers_that_are_trained(name):
    module = tiny_classifier()
    CASES[name].build().surgery(module)
    module.logits({"image": PICTURES}).square().sum().backward()
    silent = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


# ---- standardise


@given(st.integers(0, 2**31), st.floats(0.1, 50), st.floats(-100, 100))
def test_standardised_is_layer_normalisation_and_forgets_brightness_and_contrast(seed, contrast, brightness):
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out = standardised(x)
    assert torch.allclose(out, F.layer_norm(x, x.shape[1:], eps=0.0))
    assert torch.allclose(standardised(contrast * x + brightness), out)
    assert torch.allclose(out.var((1, 2, 3), correction=0), torch.ones(3).double())


def test_a_picture_of_one_colour_becomes_zeros():
    grey = torch.full((1, 3, 32, 32), 0.7) + 1e-8 * torch.randn(1, 3, 32, 32)
    assert standardised(grey).abs().max() < 1e-2


def test_what_enters_the_first_convolutions_is_standardised_and_nothing_else():
    module, entered = tiny_classifier(), {}
    controls.StandardizeOnly(layers=1).surgery(module)
    for name in ("conv1", "conv2"):
        module.network.get_submodule(name).register_forward_pre_hook(lambda m, a, n=name: entered.update({n: a[0]}))
    module.logits({"image": PICTURES})
    assert torch.allclose(entered["conv1"], F.layer_norm(PICTURES, (3, 8, 8), eps=0.0), atol=1e-5)
    assert not torch.allclose(entered["conv2"].mean((1, 2, 3)), torch.zeros(4), atol=1e-2)


def test_too_few_convolutions_is_one_clear_error(tmp_path):
    for control in (controls.StandardizeOnly(3), controls.FrozenRandomConv(3)):
        with pytest.raises(
            NoEffectError, match="has 2 two-dimensional convolutions and the control asks for the first 3"
        ):
            fit(tmp_path, tiny_classifier(), split_images(), [control])


# ---- frozen random convolutions


def test_frozen_convolutions_keep_the_shape_and_never_move(tmp_path):
    module = tiny_classifier()
    before = module.network.conv2
    shapes = {name: seen(module, name).shape for name in ("network.conv1", "network.conv2")}
    fitted = fit(tmp_path, module, split_images(), [controls.FrozenRandomConv(2)])
    for name, shape in shapes.items():
        layer = fitted.module.get_submodule(name)
        assert isinstance(layer, FrozenRandomConv2d)
        assert seen(fitted.module, name).shape == shape
        assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.ones(len(layer.weight)))
        assert list(layer.parameters()) == []
    again = tiny_classifier()
    controls.FrozenRandomConv(2).surgery(again)
    assert torch.equal(again.network.conv2.weight, fitted.module.network.conv2.weight)
    other = tiny_classifier()
    controls.FrozenRandomConv(2, seed=1).surgery(other)
    assert not torch.equal(other.network.conv2.weight, again.network.conv2.weight)
    assert not torch.equal(unit_norm_filters(before.weight), again.network.conv2.weight)


def test_frozen_convolution_is_a_convolution_with_the_old_ones_settings():
    old = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect")
    new = FrozenRandomConv2d(old)
    x = torch.randn(2, 4, 9, 9)
    old.weight.data, old.bias.data = new.weight.clone(), torch.zeros(6)
    assert torch.equal(new(x), old(x))


def test_frozen_filters_with_standardisation_are_both_there():
    module = tiny_classifier()
    controls.FrozenRandomConv(1).surgery(module)
    controls.StandardizeOnly(1).surgery(module)
    truth = F.conv2d(standardised(PICTURES), module.network.conv1.weight, padding=1)
    assert torch.allclose(seen(module), truth, atol=1e-6)
    with pytest.raises(InputError, match="already has frozen random convolutions at network.conv1"):
        controls.FrozenRandomConv(2).surgery(module)


def test_first_convolutions_are_in_order():
    assert first_convolutions(tiny_classifier(), 2) == ["network.conv1", "network.conv2"]


# ---- top-k


@given(st.integers(0, 2**31), st.floats(0.01, 1), st.sampled_from(["magnitude", "value"]))
def test_top_k_keeps_exactly_k_and_they_are_the_largest(seed, fraction, by):
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    out = keep_largest(x, fraction, by)
    k = kept_count(fraction, 50)
    for before, after in zip(x.flatten(1), out.flatten(1), strict=True):
        kept = after != 0
        assert int(kept.sum()) == k
        assert torch.equal(after[kept], before[kept])
        order = before.abs() if by == "magnitude" else before
        if k < 50:
            assert order[kept].min() >= order[~kept].max()


def test_top_k_keeps_exactly_k_of_equal_numbers():
    assert int((keep_largest(torch.ones(2, 40), 0.25) != 0).sum()) == 20


def test_top_k_passes_gradients_through_what_it_keeps_alone():
    x = torch.randn(2, 20, requires_grad=True)
    out = keep_largest(x, 0.3)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


def test_the_tap_shows_what_top_k_left_and_noise_comes_after_it():
    module = tiny_classifier()
    NoiseTap(TAP, 0.5).surgery(module)
    controls.TopKActivations(TAP, 0.1).surgery(module)
    assert (seen(module) != 0).all()  # noise fell on the zeros, too
    module = tiny_classifier()
    controls.TopKActivations(TAP, 0.1).surgery(module)
    assert (seen(module) != 0).flatten(1).sum(1).tolist() == [26] * 4  # 10 % of 4 x 8 x 8


# ---- the narrow passage


def test_the_attacker_is_shown_the_narrow_tensor_which_tells_all_that_the_wide_one_does():
    module = tiny_classifier()
    control = controls.WidthMatchedBottleneck(TAP, width=2)
    assert control.surgery(module).parameters_added == 4 * 2 + 2 + 2 * 4 + 4
    narrow, wide = seen(module, control.exposed), seen(module)
    assert narrow.shape == (4, 2, 8, 8) and wide.shape == (4, 4, 8, 8)
    expand = module.network.conv1.expand
    back = torch.linalg.pinv(expand.weight) @ (wide.movedim(1, -1) - expand.bias)[..., None]
    assert torch.allclose(back.squeeze(-1).movedim(-1, 1), narrow, atol=1e-5)


def test_a_passage_that_is_not_narrow_is_refused():
    with pytest.raises(InputError, match="`width` is 4, and `network.conv1` has 4 channels"):
        controls.WidthMatchedBottleneck(TAP, width=4).surgery(tiny_classifier())


def test_width_is_matched_to_what_is_active():
    assert [matched_width(active, 64) for active in (1, 64, 100, 640)] == [1, 1, 2, 10]


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: controls.StandardizeOnly(0), "layers"),
        (lambda: controls.FrozenRandomConv(0), "layers"),
        (lambda: controls.TopKActivations(TAP, 0.0), "fraction"),
        (lambda: controls.TopKActivations(TAP, 1.1), "fraction"),
        (lambda: controls.WidthMatchedBottleneck(TAP, 0), "width"),
    ],
)
def test_arguments_out_of_range_are_refused(build, argument):
    with pytest.raises(InputError, match=f"`{argument}` is"):
        build()
