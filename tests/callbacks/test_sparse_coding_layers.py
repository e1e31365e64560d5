"""The sparse-coding layer as a part of a network: precision, gradients, learning, what it replaces and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from lightning_privacy.callbacks.sparse_coding import functional as math
from lightning_privacy.callbacks.sparse_coding import layers as module_of_layers
from lightning_privacy.callbacks.sparse_coding.layers import SparseCode2d
from lightning_privacy.callbacks.sparse_coding.presets import PRESETS, preset
from lightning_privacy.errors import InputError


def _layer(seed=0, channels=3, atoms=8, **how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SparseCode2d(channels, atoms, **how)


def _pictures(seed=0, batch=2, channels=3, size=12):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_code_is_nearly_optimal_for_the_standardised_picture():
    layer, x = _layer(iters=300), _pictures()
    a, s = layer(x), math.standardise(x)
    drive = math.analysis(s - math.synthesis(a, layer.atoms(), (12, 12), layer.geometry), layer.atoms(), layer.geometry)
    assert math.kkt_residual(a, drive, 0.5).max() < 1e-3
    assert 0.01 < math.active_fraction(a).mean() < 0.5


def test_brightness_and_contrast_do_not_reach_the_code_where_it_standardises():
    x = _pictures()
    assert torch.allclose(_layer()(x), _layer()(0.3 * x + 0.4), atol=1e-4)
    plain = _layer(standardize=False)
    assert not torch.allclose(plain(x), plain(0.3 * x + 0.4), atol=1e-2)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (5, 1, 2), (7, 2, 3), (4, 2, 1), (5, 3, 0), (11, 4, 2), (1, 1, 0), ((3, 5), (1, 2), (1, 2))],
)
def test_a_replaced_convolution_keeps_its_output_size(kernel, stride, padding):
    conv = nn.Conv2d(3, 4, kernel, stride, padding)
    layer, x = SparseCode2d.from_conv(conv, iters=3, lam=0.1), _pictures(size=23)
    assert layer(x).shape == conv(x).shape
    assert layer.decode(layer(x), (23, 23)).shape == x.shape


def test_other_atoms_than_the_kernel_change_the_padding_with_them():
    x = _pictures(size=13)
    for conv in (nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 3, padding="valid")):
        layer = SparseCode2d.from_conv(conv, kernel_size=5)
        assert layer.kernel_size == (5, 5) and layer(x).shape == conv(x).shape
    for kernel, size in ((4, 5), (5, 3)):
        with pytest.raises(InputError, match="Leave `kernel_size` null"):
            SparseCode2d.from_conv(nn.Conv2d(3, 4, kernel), "network.conv1", kernel_size=size)


class _PaddingConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation="),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode=reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), "odd kernel"),
        (_PaddingConv(4, 4, 3), "_PaddingConv"),
        (nn.Linear(4, 4), "Linear"),
    ],
)
def test_what_it_cannot_replace_is_refused_by_name(conv, words):
    with pytest.raises(InputError, match=words) as refused:
        SparseCode2d.from_conv(conv, "network.stem")
    assert "network.stem" in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lam": -1},
        {"lam": float("nan")},
        {"iters": 0},
        {"tau": 0},
        {"eta": -0.1},
        {"kernel_size": 4},
        {"stride": 0},
        {"backward_iters": 0},
        {"damping": -1},
        {"transfer": "hard"},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="SparseCode2d"):
        SparseCode2d(3, 4, **wrong)


def test_inputs_that_do_not_fit_are_refused():
    layer = _layer()
    for x in (torch.rand(2, 4, 12, 12), torch.rand(2, 3, 12, 0)):
        with pytest.raises(InputError, match="takes floats"):
            layer(x)


def test_a_tau_below_the_stable_one_is_refused_in_the_forward_pass_and_one_above_it_runs():
    layer = _layer(solver="lca", tau=100, iters=5)
    largest = layer.largest_eigenvalue()
    layer(_pictures())
    layer.tau = 0.4 * largest
    with pytest.raises(InputError, match="Raise `tau`") as refused:
        layer(_pictures())
    assert f"L = {largest:.4g}" in str(refused.value)
    layer.tau = 0.6 * largest
    assert layer(_pictures()).isfinite().all()


def test_the_eigenvalue_is_measured_anew_when_the_dictionary_has_changed(monkeypatch):
    layer, calls = _layer(), []
    measure = module_of_layers.largest_eigenvalue
    monkeypatch.setattr(module_of_layers, "largest_eigenvalue", lambda *a: calls.append(1) or measure(*a))
    first = layer.largest_eigenvalue()
    layer(_pictures())
    assert len(calls) == 1
    layer.weight.data.copy_(torch.ones_like(layer.weight))  # which no version counter sees
    assert layer.largest_eigenvalue() > 2 * first and len(calls) == 2


def test_under_autocast_the_solver_works_in_single_precision():
    layer, x = _layer(), _pictures()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), exact)
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer(x.bfloat16().float()).bfloat16())
    whole = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert whole.dtype == torch.bfloat16 and (whole.float() - exact).norm() < 0.2 * exact.norm()


def test_doubles_stay_doubles():
    layer = _layer().double()
    assert layer(_pictures().double()).dtype == torch.float64
    assert torch.allclose(layer(_pictures().double()).float(), _layer()(_pictures()), atol=1e-4)


@pytest.mark.parametrize("solver", ["lca", "fista"])
def test_one_iteration_does_not_return_zeros(solver):
    assert _layer(solver=solver, iters=1, lam=0.25)(_pictures()).count_nonzero() > 0


@pytest.mark.parametrize("how", [{"nonneg": False}, {"solver": "lca", "transfer": "hard"}, {"form": "lateral"}])
def test_variants_run_and_differ_from_the_default(how):
    x = _pictures()
    out, usual = _layer(**how)(x), _layer()(x)
    assert out.isfinite().all() and (out - usual).norm() > 1e-3 * usual.norm()
    assert ((out < 0).any().item()) is (how.get("nonneg") is False)


def test_one_picture_without_a_batch_is_coded_as_in_a_batch():
    layer, x = _layer(), _pictures()
    assert torch.allclose(layer(x[1]), layer(x)[1], atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"dictionary": "gradient"}, {"form": "lateral", "stride": 2}])
def test_the_three_ways_back_agree_where_the_solver_has_converged(how):
    found = {}
    for backward in ("implicit", "checkpoint", "unroll"):
        layer = _layer(atoms=4, lam=0.8, iters=400, damping=0, backward_iters=200, backward=backward, **how).double()
        x = _pictures(size=8).double().requires_grad_()
        weights = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1)).double()
        (layer(x) * weights).sum().backward()
        found[backward] = [x.grad] + ([layer.weight.grad] if layer.rule == "gradient" else [])
    for one, two, three in zip(*found.values(), strict=True):
        assert one.norm() > 1e-3 and torch.allclose(two, three, atol=1e-10)
        assert (one - three).norm() < 1e-4 * three.norm()


def test_few_iterations_give_an_implicit_gradient_along_the_exact_one():
    x = _pictures(size=24, batch=4)
    grads = []
    for how in ({}, {"iters": 1000, "damping": 0, "backward_iters": 500}):
        s = x.clone().requires_grad_()
        code = _layer(**how)(s)
        (code * torch.randn(code.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        grads.append(s.grad.flatten())
    assert torch.cosine_similarity(grads[0], grads[1], dim=0) > 0.8


def test_nothing_of_the_iterations_is_kept_for_the_implicit_gradient():
    sizes = {}
    for backward in ("implicit", "unroll"):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            _layer(backward=backward)(_pictures().requires_grad_())
        sizes[backward] = sum(kept)
    assert sizes["implicit"] * 8 < sizes["unroll"]


def test_a_dictionary_trained_by_gradients_gets_them_and_stays_of_unit_norm_in_use():
    layer = _layer(dictionary="gradient")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.1)
    before = layer.atoms().detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(_pictures()).square().mean().backward()
        optimizer.step()
        assert torch.allclose(layer.atoms().flatten(1).norm(dim=1), torch.ones(8), atol=1e-6)
    assert not torch.allclose(layer.atoms(), before, atol=1e-3)
    assert not list(_layer(dictionary="fixed").parameters())


def test_the_local_rule_lowers_the_energy_of_the_pictures_and_keeps_unit_norms():
    layer, x = _layer(dictionary="hebbian", eta=0.2, atoms=6), _pictures(size=16, batch=8).cumsum(2).cumsum(3)
    layer.measure, energies = True, []
    for _ in range(15):
        layer(x)
        energies.append(layer.measures.energy.item())
        layer.update_dictionary()
        assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.ones(6), atol=1e-6)
    assert energies[-1] < 0.9 * energies[0]


def test_statistics_of_two_forward_passes_are_those_of_the_joint_batch():
    x = _pictures(batch=4)
    one, two = _layer(dictionary="hebbian"), _layer(dictionary="hebbian")
    one(x)
    two(x[:1]), two(x[1:])
    one.update_dictionary(), two.update_dictionary()
    assert torch.allclose(one.weight, two.weight, atol=1e-6)
    assert not torch.equal(one.weight, _layer(dictionary="hebbian").weight)


def test_evaluation_learns_nothing_and_an_update_without_statistics_changes_nothing():
    layer = _layer(dictionary="hebbian").eval()
    before = layer.weight.clone()
    layer(_pictures())
    layer.update_dictionary()
    assert layer.sums is None and torch.equal(layer.weight, before)


def test_measures_are_those_of_the_code():
    layer, x = _layer(), _pictures()
    layer.measure = True
    a, s = layer(x), math.standardise(x)
    assert layer.measures.energy.item() == pytest.approx(
        math.energy(a, s, layer.atoms(), 0.5, layer.geometry).mean().item(), rel=1e-5
    )
    assert layer.measures.active.item() == pytest.approx(math.active_fraction(a).mean().item())
    assert 0.05 < layer.measures.residual.item() < 1


@pytest.mark.parametrize("dictionary", ["fixed", "hebbian", "gradient"])
def test_the_state_is_the_dictionary_alone_and_makes_the_same_codes(dictionary):
    layer, other, x = _layer(dictionary=dictionary), _layer(seed=1, dictionary=dictionary), _pictures()
    assert set(layer.state_dict()) == {"weight"}
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x)) and torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_presets_build_layers_as_published_and_as_recommended():
    released = preset("sca-released")
    assert (released["solver"], released["tau"], released["iters"], released["form"]) == ("lca", 100.0, 500, "lateral")
    assert preset("sparse-standard")["layers"] == 1 and preset("sca-learned")["dictionary"] == "hebbian"
    for name in PRESETS:
        how = {k: v for k, v in preset(name, iters=2).items() if k not in ("layers", "kernel_size")}
        assert SparseCode2d(3, 4, **how)(_pictures()).shape == (2, 4, 12, 12)
    with pytest.raises(InputError, match="sca-fast"):
        preset("sca-slow")


def test_the_fast_preset_reaches_a_lower_energy_than_the_released_one():
    energies = []
    for name in ("sca-fast", "sca-released"):
        how = {k: v for k, v in preset(name).items() if k not in ("layers", "kernel_size")}
        layer = _layer(atoms=16, **how)
        layer.measure = True
        layer(_pictures(size=16, batch=2).cumsum(2).cumsum(3))
        energies.append(layer.measures.energy.item())
    assert energies[0] < energies[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_codes_and_gradients_on_a_gpu_are_those_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        layer, x = _layer(iters=100).to(device), _pictures().to(device).requires_grad_()
        code = layer(x)
        code.square().sum().backward()
        found.append((code.detach().cpu(), x.grad.cpu()))
    assert (found[0][0] - found[1][0]).norm() < 0.02 * found[0][0].norm()  # TF32 convolutions
    assert torch.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.9


def test_an_attacker_who_knows_the_defence_sees_through_the_threshold():
    layer = SparseCode2d(1, 4, kernel_size=3, lam=50.0)
    picture = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    code = layer(picture)
    assert not code.any()
    assert not torch.autograd.grad(code.sum(), picture)[0].any()  # nothing is active, and nothing passes
    with layer.surrogate():
        seen = layer(picture)
        assert torch.equal(seen, code)
    assert torch.autograd.grad((seen * torch.rand_like(seen)).sum(), picture)[0].abs().sum() > 0
    assert not torch.autograd.grad(layer(picture).sum(), picture)[0].any()


def test_the_synthesis_and_the_dictionary_are_what_the_layer_uses():
    layer = SparseCode2d(2, 6, kernel_size=3, stride=2, dictionary="gradient", standardize=False, lam=0.1)
    picture = torch.rand(1, 2, 8, 8)
    code = layer(picture)
    assert torch.equal(layer.synthesise(code), layer.decode(code, (8, 8)))
    assert torch.equal(layer.dictionary, layer.atoms()) and not layer.dictionary.requires_grad
