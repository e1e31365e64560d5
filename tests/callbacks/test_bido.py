import itertools

import numpy as np
import pytest
import torch

from lightning_privacy.callbacks import BiDO
from lightning_privacy.callbacks.bido.functional import (
    bido_terms,
    gaussian_kernel,
    label_kernel,
    normalised,
    normalised_hsic,
)
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.properties import Property
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.tiny_modules import PlainRegressor

TAPS = ["network.conv1", "network.conv2"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hsic_by_hand(x, y, sigma=5.0, epsilon=1e-5):
    """The released code's form, R = KH (KH + epsilon n I)^-1, in float64; y are classes."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    distances = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    kx = np.exp(-distances / (2 * sigma**2 * x.shape[1])) @ h
    one_hot = np.eye(y.max() + 1)[y]
    ky = one_hot @ one_hot.T @ h
    rx, ry = (k @ np.linalg.inv(k + epsilon * n * np.eye(n)) for k in (kx, ky))
    return (rx * ry.T).sum()


def test_hsic_is_the_direct_formula():
    x, labels = draw(24, 2, 5), torch.arange(24) % 3
    found = normalised_hsic(gaussian_kernel(x, 5.0), label_kernel(labels))
    expected = hsic_by_hand(x.flatten(1).double().numpy(), labels.numpy())
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_hsic_of_pictures_keeps_its_digits_in_float32():
    x, labels = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
    found = normalised_hsic(gaussian_kernel(x, 5.0), label_kernel(labels))
    assert found.item() == pytest.approx(hsic_by_hand(x.flatten(1).double().numpy(), labels.numpy()), rel=1e-3)


def test_hsic_of_independent_variables_falls_with_the_records_and_that_of_dependent_ones_does_not():
    def value(n, dependent):
        x = draw(n, 1)
        other = x.square() if dependent else draw(n, 1, seed=1)
        return normalised_hsic(gaussian_kernel(x, 0.5), gaussian_kernel(other, 0.5)).item()

    assert value(1000, False) < 0.4 * value(100, False)
    assert value(1000, True) > 10 * value(1000, False)


def test_without_dependence_hsic_is_the_product_of_the_traces_over_the_records():
    one, other = gaussian_kernel(draw(5, 3).double(), 1.0), gaussian_kernel(draw(5, 2, seed=1).double(), 1.0)
    shuffled = [normalised_hsic(one, other[list(p)][:, list(p)]) for p in itertools.permutations(range(5))]
    expected = normalised(one).trace() * normalised(other).trace() / 4
    torch.testing.assert_close(torch.stack(shuffled).mean(), expected)


def test_eigenvalues_of_the_normalised_kernel_lie_from_0_to_1():
    values = torch.linalg.eigvalsh(normalised(gaussian_kernel(draw(20, 4).double(), 1.0)))
    assert values.min() > -1e-9 and values.max() < 1


def test_terms_are_sums_over_taps_and_single_records_depend_on_nothing():
    x, labels, z = draw(10, 3), torch.arange(10) % 2, draw(10, 4, seed=1)
    one, two = bido_terms(x, labels, [z]), bido_terms(x, labels, [z, z])
    assert two[0].item() == pytest.approx(2 * one[0].item()) and two[1].item() == pytest.approx(2 * one[1].item())
    assert [t.item() for t in bido_terms(x[:1], labels[:1], [z[:1]])] == [0, 0]


def test_gradient_is_finite_for_constant_and_repeated_features():
    z = torch.zeros(6, 4, requires_grad=True)
    x, y = bido_terms(draw(6, 3), torch.arange(6) % 2, [z])
    (x - y).backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_gradient_descent_on_the_terms_separates_classes_and_hides_pictures():
    x, labels = draw(16, 6), torch.arange(16) % 2
    z = draw(16, 6, seed=1).requires_grad_()
    before = [t.item() for t in bido_terms(x, labels, [z])]
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        first, second = bido_terms(x, labels, [z])
        (first - second).backward()
        optimizer.step()
    after = [t.item() for t in bido_terms(x, labels, [z])]
    assert after[0] < before[0] - 1 and after[1] > 0.9


@pytest.mark.parametrize("weights", [{"lambda_x": 5.0, "lambda_y": 0.0}, {"lambda_x": 0.0, "lambda_y": 5.0}])
def test_each_weight_reaches_the_network_up_to_the_tap_alone(tmp_path, weights):
    def trained(defences):
        return fit(tmp_path, TinyClassifier(), plain_images(8), defences, max_steps=1).weights

    plain, defended = trained([]), trained([BiDO(["network.conv1"], **weights)])
    moved = {name for name in plain if not torch.equal(plain[name], defended[name])}
    assert moved == {"network.conv1.weight", "network.conv1.bias"} or moved == {"network.conv1.weight"}


def test_both_statistics_are_logged_and_the_batch_is_no_longer_separable(tmp_path):
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [BiDO(TAPS)], max_steps=2)
    logged = fitted.trainer.callback_metrics
    assert 0 < logged["defence/bido/hsic_x"] < 14 and 0 < logged["defence/bido/hsic_y"] < 6
    assert BiDO(TAPS).breaks == {Property.PER_SAMPLE_SEPARABLE}


def test_wrong_arguments_and_missing_labels_are_said(tmp_path):
    for wrong in ({"taps": []}, {"taps": "conv1"}, {"lambda_x": -1}, {"lambda_y": float("inf")}, {"sigma": 0}):
        with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
            BiDO(**{"taps": TAPS, **wrong})
    with pytest.raises(NoEffectError, match="No layer of PlainRegressor is called `network.conv1`"):
        fit(tmp_path, PlainRegressor(), plain_images(8), [BiDO(TAPS)])
