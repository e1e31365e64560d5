"""Distances of updates and the minimisers behind the searches, against closed forms and independent libraries."""

import numpy as np
import pytest
import scipy.optimize
import torch

from lightning_privacy.attacks.leakage.lbfgs import LBFGS
from lightning_privacy.attacks.leakage.matching import Matching, cosine_distance, layerwise_error, total_variation
from lightning_privacy.attacks.leakage.optimiser import FirstOrder
from lightning_privacy.errors import InputError


def rosenbrock(v):
    x = v["x"]
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def test_lbfgs_solves_many_problems_at_once_in_about_the_evaluations_of_scipy():
    start = torch.tensor([[-1.2, 1.0, -1.2, 1.0], [2.0, -1.0, 0.5, 0.3], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    trace = LBFGS(evaluations=120).minimise(rosenbrock, {"x": start})
    ours = trace.losses
    theirs = [
        scipy.optimize.minimize(scipy.optimize.rosen, s, jac=scipy.optimize.rosen_der, method="L-BFGS-B")
        for s in start.numpy()
    ]
    assert float(ours.max()) < 1e-12
    assert max(r.nfev for r in theirs) < 120
    np.testing.assert_allclose(trace.variables["x"][0].numpy(), np.ones(4), atol=1e-5)


def test_lbfgs_is_exact_on_a_quadratic_and_keeps_problems_apart():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 6, 6, generator=g, dtype=torch.float64)
    curve = root @ root.mT + torch.eye(6, dtype=torch.float64)
    goal = torch.randn(3, 6, generator=g, dtype=torch.float64)

    def objective(v):
        d = v["x"] - goal
        return (d[:, None] @ curve @ d[..., None]).flatten()

    trace = LBFGS(evaluations=80).minimise(objective, {"x": torch.zeros(3, 6, dtype=torch.float64)})
    torch.testing.assert_close(trace.variables["x"], goal, atol=1e-6, rtol=0)


def test_lbfgs_survives_a_problem_that_is_not_a_number():
    def objective(v):
        return torch.stack([v["x"][0].square().sum(), v["x"][1].log().sum()])

    trace = LBFGS(evaluations=20).minimise(objective, {"x": torch.tensor([[3.0, 4.0], [-1.0, -1.0]])})
    assert float(trace.losses[0]) < 1e-8 and bool(torch.isinf(trace.losses[1])) and not bool(trace.flat[1])


@pytest.mark.parametrize("rule", ["adam", "signed_adam", "rmsprop"])
def test_first_order_rules_keep_restarts_apart_and_confine_them(rule):
    start = {"x": torch.tensor([[3.0, 0.5], [0.2, 0.9]])}
    how = FirstOrder(steps=300, learning_rate=1e-3 if rule == "rmsprop" else 0.05, rule=rule)
    trace = how.minimise(lambda v: (v["x"] - 2).square().sum(1), start, lambda v: {"x": v["x"].clamp(0, 1)})
    torch.testing.assert_close(trace.variables["x"][1], torch.ones(2), atol=1e-3, rtol=0)
    assert float(trace.losses[1]) == pytest.approx(2, abs=1e-2)


def test_signed_adam_takes_signs_only():
    def traces(scale):
        how = FirstOrder(steps=10, learning_rate=0.1)
        return how.minimise(lambda v: scale * v["x"].square().sum(1), {"x": torch.tensor([[3.0, -7.0]])}).variables["x"]

    assert torch.equal(traces(1.0), traces(1000.0))


def test_cosine_distance_is_that_of_scipy_and_keeps_its_digits():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=g, dtype=torch.float64)
    split = [{"w": x[:20], "v": x[20:]} for x in (a, b)]
    expected = scipy.spatial.distance.cosine(a.numpy(), b.numpy())
    assert float(cosine_distance(*split, ("w", "v"))) == pytest.approx(expected, rel=1e-9)
    near = {"w": torch.tensor([1.0, 1e-5])}
    assert float(cosine_distance(near, {"w": torch.tensor([1.0, 0.0])}, ("w",))) == pytest.approx(5e-11, rel=1e-3)


def test_total_variation_of_stripes():
    stripes = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).expand(1, 1, 4, 4)
    assert float(total_variation(stripes)) == 1.0 and float(total_variation(torch.ones(1, 1, 4, 4))) == 0.0


def test_layers_that_were_not_shared_cannot_be_matched():
    values = {"w": torch.ones(2)}
    with pytest.raises(InputError, match="was shared"):
        Matching(layers=("v",)).data_term(values, values)
    with pytest.raises(InputError, match="is zero"):
        layerwise_error(values, {"w": torch.zeros(2)}, ("w",))
