"""Sparse coding's mathematics against closed forms, dense matrices and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from lightning_privacy.callbacks.sparse_coding import functional as math
from lightning_privacy.callbacks.sparse_coding.dictionary import (
    HebbianSums,
    hebbian_step,
    hebbian_sums,
    largest_eigenvalue,
    normalise_atoms,
    random_atoms,
)
from lightning_privacy.callbacks.sparse_coding.functional import Geometry
from lightning_privacy.callbacks.sparse_coding.implicit import with_implicit_gradient
from lightning_privacy.callbacks.sparse_coding.operators import Operators
from lightning_privacy.callbacks.sparse_coding.solvers import (
    SolverSettings,
    automatic_tau,
    check_tau,
    solve,
    solve_checkpointed,
)
from lightning_privacy.errors import InputError

SAME = Geometry((1, 1), (2, 2))


def _problem(seed=0, batch=2, atoms=6, channels=2, size=(9, 10), kernel=(5, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    phi = random_atoms(atoms, channels, kernel, generator).to(dtype)
    return torch.randn(batch, channels, *size, generator=generator).to(dtype), normalise_atoms(phi)


def _settings(phi, lam=0.5, **how):
    largest = float(largest_eigenvalue(phi))
    return SolverSettings(lam, how.pop("tau", automatic_tau(largest, how.get("solver", "fista"))), **how)


def _matrix(phi, size, geometry):
    """The synthesis as a dense matrix, one column a unit of the code."""
    shape = math.analysis(phi.new_zeros(1, phi.shape[1], *size), phi, geometry).shape
    units = torch.eye(shape[1:].numel(), dtype=phi.dtype).view(-1, *shape[1:])
    return math.synthesis(units, phi, size, geometry).flatten(1).T


@pytest.mark.parametrize("geometry", [SAME, Geometry((2, 3), (1, 0)), Geometry((3, 2), (4, 2))])
def test_synthesis_is_the_adjoint_of_analysis(geometry):
    s, phi = _problem(kernel=(5, 4), size=(11, 13))
    b = math.analysis(s, phi, geometry)
    a = torch.randn(b.shape, dtype=b.dtype, generator=torch.Generator().manual_seed(1))
    back = math.synthesis(a, phi, (11, 13), geometry)
    assert back.shape == s.shape
    assert (b * a).sum().item() == pytest.approx((s * back).sum().item(), abs=1e-9)


@pytest.mark.parametrize("geometry", [SAME, Geometry((2, 3), (2, 2))])
def test_lateral_gram_equals_residual_gram_for_codes_in_the_interior_and_not_at_borders(geometry):
    _, phi = _problem(size=(22, 22))
    places = math.analysis(phi.new_zeros(1, 2, 22, 22), phi, geometry).shape[2:]
    kernel = math.lateral_kernel(phi, geometry)
    for rows, same in ((slice(3, 5), True), (slice(0, 1), False)):
        a = phi.new_zeros(1, 6, *places)
        a[:, :, rows, 3:5] = torch.rand(a[:, :, rows, 3:5].shape, generator=torch.Generator().manual_seed(0)).double()
        residual = math.analysis(math.synthesis(a, phi, (22, 22), geometry), phi, geometry)
        assert torch.allclose(math.lateral_gram(a, kernel), residual, atol=1e-12) is same


def test_the_lateral_form_is_the_residual_form_of_the_signal_with_its_border_of_zeros():
    s, phi = _problem()
    lateral = solve(s, phi, SAME, _settings(phi, iters=50, form="lateral"))
    padded = torch.nn.functional.pad(s, (2, 2, 2, 2))
    residual = solve(padded, phi, Geometry((1, 1), (0, 0)), _settings(phi, iters=50))
    assert torch.allclose(lateral, residual, atol=1e-12)
    assert not torch.allclose(lateral, solve(s, phi, SAME, _settings(phi, iters=50)), atol=1e-3)


def test_thresholds_by_their_formulas():
    u = torch.tensor([-2.0, -0.4, 0.0, 0.5, 0.6, 3.0]).view(1, 1, 1, -1)
    expected = {
        (True, "soft"): [0, 0, 0, 0, 0.1, 2.5],
        (False, "soft"): [-1.5, 0, 0, 0, 0.1, 2.5],
        (True, "hard"): [0, 0, 0, 0, 0.6, 3],
        (False, "hard"): [-2, 0, 0, 0, 0.6, 3],
    }
    for (nonneg, transfer), values in expected.items():
        out = math.threshold(u, 0.5, nonneg=nonneg, transfer=transfer)
        assert torch.allclose(out.flatten(), torch.tensor(values, dtype=torch.float32), atol=1e-6)


def test_standardised_signals_have_mean_0_and_variance_1_one_by_one_and_constant_ones_are_0():
    s = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 + 3
    s[2] = 0.7
    out = math.standardise(s)
    assert torch.allclose(out[:2].mean((1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(out[:2].var((1, 2, 3), correction=0), torch.ones(2), atol=1e-4)
    assert out[2].abs().max() < 1e-2
    assert torch.allclose(math.standardise(s[:1]), out[:1], atol=1e-6)


@pytest.mark.parametrize("geometry", [SAME, Geometry((2, 2), (2, 2)), Geometry((2, 3), (1, 1))])
def test_largest_eigenvalue_bounds_the_dense_one_and_is_near_it(geometry):
    _, phi = _problem(atoms=4, channels=2)
    dense = torch.linalg.matrix_norm(_matrix(phi, (18, 18), geometry), ord=2).square().item()
    found = largest_eigenvalue(phi, geometry.stride).item()
    assert 0.99 * dense <= found <= 1.15 * dense  # an infinite signal's is the larger
    assert largest_eigenvalue(phi, geometry.stride).item() == found


def test_unstable_steps_are_refused_with_step_eigenvalue_and_remedy_and_do_diverge():
    s, phi = _problem(dtype=torch.float32)
    largest = float(largest_eigenvalue(phi))
    check_tau(0.55 * largest, largest, "lca")
    check_tau(1.01 * largest, largest, "fista")
    for solver, share, words in (("lca", 0.45, "L / 2"), ("fista", 0.9, "above L")):
        with pytest.raises(InputError, match=words) as refused:
            check_tau(share * largest, largest, solver)
        assert f"{share * largest:.4g}" in str(refused.value) and f"{largest:.4g}" in str(refused.value)
        assert "Raise `tau`" in str(refused.value)
    wild = SolverSettings(0.1, 0.3 * largest, "lca", 200, nonneg=False)
    assert not math.energy(solve(s, phi, SAME, wild), s, phi, 0.1, SAME).max() < 1e6


@pytest.mark.parametrize("nonneg", [True, False])
@pytest.mark.parametrize("geometry", [SAME, Geometry((2, 2), (1, 1))])
@pytest.mark.parametrize("solver", ["fista", "lca"])
def test_converged_codes_fulfil_the_optimality_conditions(solver, geometry, nonneg):
    s, phi = _problem()
    how = _settings(phi, solver=solver, iters=600, nonneg=nonneg)
    a = solve(s, phi, geometry, how)
    drive = math.analysis(s - math.synthesis(a, phi, (9, 10), geometry), phi, geometry)
    assert math.kkt_residual(a, drive, 0.5, nonneg=nonneg).max() < {"fista": 1e-5, "lca": 5e-3}[solver]
    assert ((a < 0).any().item() is not nonneg) and 0.02 < math.active_fraction(a).mean() < 0.6
    short = solve(s, phi, geometry, _settings(phi, solver=solver, iters=5, nonneg=nonneg))
    drive = math.analysis(s - math.synthesis(short, phi, (9, 10), geometry), phi, geometry)
    assert math.kkt_residual(short, drive, 0.5, nonneg=nonneg).min() > 1e-2


@pytest.mark.parametrize("nonneg", [True, False])
def test_codes_are_scikit_learns(nonneg):
    s, phi = _problem(batch=1, atoms=3, channels=1, size=(6, 6), kernel=(3, 3))
    geometry, lam = Geometry((1, 1), (1, 1)), 0.3
    ours = solve(s, phi, geometry, _settings(phi, lam, iters=800, nonneg=nonneg))
    matrix = _matrix(phi, (6, 6), geometry)
    # Their objective is 1 / (2 n) ||y - X w||^2 + alpha ||w||_1.
    theirs = Lasso(lam / len(matrix), fit_intercept=False, positive=nonneg, tol=1e-12, max_iter=100000)
    theirs.fit(matrix.numpy(), s.flatten().numpy())
    error = s.flatten().numpy() - matrix.numpy() @ theirs.coef_
    objective = (error**2).sum() / 2 + lam * np.abs(theirs.coef_).sum()
    assert math.energy(ours, s, phi, lam, geometry).item() == pytest.approx(objective, rel=1e-8)
    assert np.allclose(ours.flatten().numpy(), theirs.coef_, atol=1e-4)


@pytest.mark.parametrize("form", ["residual", "lateral"])
def test_energy_never_rises_along_lca_with_a_safe_step(form):
    s, phi = _problem()
    geometry = Geometry((1, 1), (0, 0)) if form == "lateral" else SAME  # the lateral form's own objective
    padded = torch.nn.functional.pad(s, (2, 2, 2, 2)) if form == "lateral" else s
    tau = float(largest_eigenvalue(phi))
    path = [
        math.energy(
            solve(s, phi, SAME, _settings(phi, solver="lca", tau=tau, iters=n, form=form)), padded, phi, 0.5, geometry
        )
        for n in range(1, 40)
    ]
    falls = torch.stack(path).diff(dim=0)
    assert falls.max() <= 1e-9 and (torch.stack(path)[-1] < 0.95 * torch.stack(path)[0]).all()


def test_fista_nears_the_optimum_as_its_bound_says_and_faster_than_lca():
    s, phi = _problem()
    how = {n: _settings(phi, iters=n) for n in (1, 5, 20, 60, 600)}
    at = {n: math.energy(solve(s, phi, SAME, h), s, phi, 0.5, SAME) for n, h in how.items()}
    optimum = solve(s, phi, SAME, how[600]).square().sum((1, 2, 3))
    for n in (1, 5, 20, 60):  # Beck and Teboulle 2009, theorem 4.4
        assert (at[n] - at[600] <= 2 * how[n].tau * optimum / (n + 1) ** 2 + 1e-9).all()
    lca = solve(s, phi, SAME, _settings(phi, solver="lca", iters=20))
    assert (at[20] < math.energy(lca, s, phi, 0.5, SAME)).all()


def test_the_momentum_restarts_where_it_overshoots():
    s, phi = _problem(batch=1)
    long = math.energy(solve(s, phi, SAME, _settings(phi, iters=200)), s, phi, 0.5, SAME)
    best = math.energy(solve(s, phi, SAME, _settings(phi, iters=1000)), s, phi, 0.5, SAME)
    assert (long - best).item() < 1e-8  # without restarts it is 3e-5


@pytest.mark.parametrize("solver", ["lca", "fista"])
def test_one_iteration_is_already_a_code(solver):
    s, phi = _problem()
    a = solve(s, phi, SAME, _settings(phi, lam=0.1, solver=solver, iters=1))
    assert a.count_nonzero() > 0
    tau = automatic_tau(float(largest_eigenvalue(phi)), solver)
    lam = 0.1 if solver == "lca" else 0.1 / tau  # a proximal step shrinks by lambda / tau
    assert torch.allclose(a, torch.relu(math.analysis(s, phi, SAME) / tau - lam))


def test_hard_thresholded_codes_are_fixed_points_that_reconstruct_without_shrinkage():
    s, phi = _problem()
    hard = solve(s, phi, SAME, _settings(phi, solver="lca", transfer="hard", iters=400))
    drive = math.analysis(s - math.synthesis(hard, phi, (9, 10), SAME), phi, SAME)
    assert drive[hard != 0].abs().max() < 0.02 and hard[hard != 0].min() > 0.5
    soft = solve(s, phi, SAME, _settings(phi, solver="lca", iters=400))
    assert math.relative_residual(hard, s, phi, SAME).mean() < math.relative_residual(soft, s, phi, SAME).mean()
    with pytest.raises(InputError, match="convex"):
        solve(s, phi, SAME, _settings(phi, transfer="hard"))


@pytest.mark.parametrize("solver", ["lca", "fista"])
def test_a_warm_start_at_the_optimum_stays_there(solver):
    s, phi = _problem()
    best = solve(s, phi, SAME, _settings(phi, iters=600))
    warm = solve(s, phi, SAME, _settings(phi, solver=solver, iters=3), start=best)
    assert torch.allclose(warm, best, atol=1e-5)


@pytest.mark.parametrize("solver", ["lca", "fista"])
def test_each_code_depends_on_its_own_signal_alone(solver):
    s, phi = _problem(batch=4)
    together = solve(s, phi, SAME, _settings(phi, solver=solver, iters=60))
    alone = solve(s[2:3], phi, SAME, _settings(phi, solver=solver, iters=60))
    assert torch.allclose(together[2:3], alone, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("form", ["residual", "lateral"])
@pytest.mark.parametrize("geometry", [SAME, Geometry((1, 1), (0, 1)), Geometry((2, 2), (2, 2))])
def test_the_fast_operators_without_gradients_are_the_plain_ones(geometry, form, channels):
    s, phi = _problem(channels=channels, size=(10, 12))
    plain = solve(s, phi.clone().requires_grad_(), geometry, _settings(phi, form=form))
    with torch.no_grad():
        assert torch.allclose(solve(s, phi, geometry, _settings(phi, form=form)), plain, atol=1e-12)
        operators = Operators(phi, (10, 12), geometry, form)
        assert torch.allclose(operators.decode(plain), math.synthesis(plain, phi, (10, 12), geometry), atol=1e-12)


# --- gradients -------------------------------------------------------------------------------------------------


def _gradients(code_of, s, phi):
    s, phi = s.clone().requires_grad_(), phi.clone().requires_grad_()
    code = code_of(s, phi)
    weights = torch.randn(code.shape, generator=torch.Generator().manual_seed(7)).to(code)
    return torch.autograd.grad((code * weights).sum(), (s, phi))


def _implicit(how, geometry, iters=200):
    def code_of(s, phi):
        with torch.no_grad():
            code = solve(s, phi, geometry, how)
        return with_implicit_gradient(code, s, phi, geometry, how.form, iters)

    return code_of


@pytest.mark.parametrize(
    ("geometry", "how"),
    [
        (SAME, {}),
        (SAME, {"nonneg": False}),
        (SAME, {"form": "lateral"}),
        (SAME, {"solver": "lca", "transfer": "hard"}),
        (Geometry((2, 2), (1, 1)), {}),
    ],
    ids=["plain", "signed", "lateral", "hard", "strided"],
)
def test_implicit_gradients_are_those_of_the_iterations_at_convergence(geometry, how):
    s, phi = _problem(atoms=4, size=(7, 8))
    settings = _settings(phi, lam=0.8, iters=500, **how)
    unrolled = _gradients(lambda s, phi: solve(s, phi, geometry, settings), s, phi)
    implicit = _gradients(_implicit(settings, geometry), s, phi)
    for one, other in zip(implicit, unrolled, strict=True):
        assert other.norm() > 0.1
        assert (one - other).norm() < 1e-4 * other.norm()


def test_implicit_gradients_agree_with_finite_differences():
    s, phi = _problem(batch=1, atoms=2, channels=1, size=(4, 4), kernel=(3, 3))
    geometry = Geometry((1, 1), (1, 1))
    code_of = _implicit(_settings(phi, lam=0.4, iters=120), geometry, iters=30)
    assert torch.autograd.gradcheck(code_of, (s.requires_grad_(), phi.requires_grad_()), eps=1e-6, atol=1e-5)


def test_checkpointed_gradients_are_the_unrolled_ones():
    s, phi = _problem()
    for how in (_settings(phi, iters=17), _settings(phi, solver="lca", iters=17, form="lateral")):
        plain = _gradients(lambda s, phi, how=how: solve(s, phi, SAME, how), s, phi)
        saved = _gradients(lambda s, phi, how=how: solve_checkpointed(s, phi, SAME, how), s, phi)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plain, saved, strict=True))
        assert torch.equal(solve(s, phi, SAME, how), solve_checkpointed(s, phi, SAME, how))


# --- the dictionary --------------------------------------------------------------------------------------------


def test_hebbian_sums_are_minus_the_gradient_of_the_squared_error():
    s, phi = _problem()
    for geometry in (SAME, Geometry((2, 3), (1, 2))):
        a = solve(s, phi, geometry, _settings(phi))
        phi.requires_grad_()
        error = (s - math.synthesis(a.detach(), phi, (9, 10), geometry)).square().sum() / 2
        (gradient,) = torch.autograd.grad(error, phi)
        phi = phi.detach()
        sums = hebbian_sums(a, s, phi, geometry)
        assert torch.allclose(sums.correlation, -gradient, atol=1e-10)
        assert torch.equal(sums.activations, (a != 0).double().sum((0, 2, 3)))


def test_a_hebbian_step_by_hand_is_clipped_and_of_unit_norm():
    phi = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    sums = HebbianSums(torch.tensor([[[[0.0, 6.0]]], [[[0.0, 0.0]]]]), torch.tensor([5.0, 0.0]))
    out = hebbian_step(phi, sums, eta=0.75)  # 0.75 * 6 / (1 + 5) = 0.75
    assert torch.allclose(out, torch.tensor([[[[0.8, 0.6]]], [[[0.0, 1.0]]]]))
    clipped = hebbian_step(phi, sums, eta=0.75, clip=0.1)
    assert clipped[0, 0, 0, 1].item() == pytest.approx(0.1 / 1.01**0.5)


def test_learning_lowers_the_energy_and_keeps_unit_norms():
    truth = _problem(seed=3, atoms=3, channels=1)[1]
    generator = torch.Generator().manual_seed(5)
    sparse = torch.rand(8, 3, 16, 16, generator=generator).double()
    s = math.synthesis(torch.where(sparse > 0.97, 2.0, 0.0).double(), truth, (16, 16), SAME)
    phi = _problem(seed=4, atoms=3, channels=1)[1]
    path = []
    for _ in range(25):
        a = solve(s, phi, SAME, _settings(phi, lam=0.2))
        path.append(math.energy(a, s, phi, 0.2, SAME).mean().item())
        phi = hebbian_step(phi, hebbian_sums(a, s, phi, SAME), eta=0.5)
        assert torch.allclose(phi.flatten(1).norm(dim=1), torch.ones(3).double())
    assert path[-1] < 0.8 * path[0]


def test_atoms_have_unit_norm_and_a_zero_atom_stays_zero():
    assert torch.allclose(random_atoms(4, 3, (5, 5)).flatten(1).norm(dim=1), torch.ones(4))
    atoms = torch.zeros(2, 1, 3, 3)
    atoms[0] = 2.0
    out = normalise_atoms(atoms)
    assert torch.allclose(out[0], torch.full((1, 3, 3), 1 / 3)) and not out[1].any()


def test_measures_of_a_code_by_hand():
    s, phi = torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 1, 1)
    a = torch.tensor([[[[2.0, 1.0], [0.0, 2.0]]]])
    geometry = Geometry((1, 1), (0, 0))
    assert math.energy(a, s, phi, 0.5, geometry).item() == pytest.approx((1 + 4) / 2 + 0.5 * 5)
    assert math.relative_residual(a, s, phi, geometry).item() == pytest.approx((5 / 16) ** 0.5)
    assert math.active_fraction(a).item() == 0.75
    drive = s - a
    assert math.kkt_residual(a, drive, 0.5).item() == pytest.approx(1.5)  # the inactive unit: 2 - 0.5
