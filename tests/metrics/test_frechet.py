import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.frechet import (
    FrechetDistance,
    KernelDistance,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
)


def features(seed, n, dim, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + shift


class Pooled(nn.Module):
    """A little extractor with the attribute that torchmetrics asks for."""

    num_features = 12

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)


def scipy_frechet(a, b):
    a, b = a.numpy(), b.numpy()
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    sa, sb = np.cov(a.T), np.cov(b.T)
    return mean + np.trace(sa + sb - 2 * scipy.linalg.sqrtm(sa @ sb).real)


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 40, 6), (40, 90, 6), (30, 30, 2)])
def test_equals_scipys_matrix_square_root(n, m, dim):
    a, b = features(0, n, dim), features(1, m, dim, 0.5)
    expected = scipy_frechet(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    moments = [x for f in (a, b) for x in (f.mean(0), torch.cov(f.T))]
    assert frechet_distance_of_moments(*moments) == pytest.approx(expected, rel=1e-8)


def test_fewer_pictures_than_features_is_exact_too():
    # Rotate a set of few effective dimensions into many: the distance does not change.
    a, b = features(0, 20, 4), features(1, 15, 4, 1.0)
    rotation, _ = torch.linalg.qr(features(2, 64, 64))
    wide = [nn.functional.pad(x, (0, 60)) @ rotation for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_closed_form_of_commuting_covariances():
    a = features(0, 100, 5)
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * float(torch.cov(a.T).trace()))
    assert frechet_distance(a, a + torch.tensor([0.0, 3, 4, 0, 0])) == pytest.approx(25)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(3, 12), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_symmetric_non_negative_and_blind_to_order(seed, n, m, dim):
    a, b = features(seed, n, dim), features(seed + 1, m, dim)
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7, abs=1e-7)
    assert frechet_distance(a.flip(0), b) == pytest.approx(distance, rel=1e-7, abs=1e-7)


def test_class_equals_torchmetrics_fid_with_the_same_extractor():
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(0)
    real, generated = torch.rand(60, 3, 8, 8, generator=generator), torch.rand(40, 3, 8, 8, generator=generator) ** 2
    theirs = FrechetInceptionDistance(feature=Pooled(), normalize=True).set_dtype(torch.float64)
    ours = FrechetDistance(Pooled())
    for images, side in ((real, True), (generated, False)):
        theirs.update(images, real=side)
        for part in images.split(16):
            ours.update(part, real=side)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert float(ours.compute()) == pytest.approx(frechet_distance(*(Pooled()(x) for x in (real, generated))), rel=1e-6)
    ours.reset()
    ours.update(real[:1], real=True)
    with pytest.raises(InputError, match="at least two real"):
        ours.compute()


def test_kernel_distance_equals_torchmetrics_kid():
    from torchmetrics.image.kid import poly_mmd

    a, b = features(0, 30, 5).float(), features(1, 30, 5, 0.3).float()
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(float(poly_mmd(a.double(), b.double())), rel=1e-9)
    assert error > 0
    metric = KernelDistance()
    for part in a.split(7):
        metric.update(part, real=True)
    metric.update(b, real=False)
    assert float(metric.compute()) == pytest.approx(value, rel=1e-9)


def test_kernel_distance_is_unbiased_and_its_error_is_right():
    values, errors = [], []
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(40, 3, generator=generator)
        b = torch.randn(25, 3, generator=generator) + 0.7
        value, error = kernel_distance(a, b)
        values.append(value)
        errors.append(error)
    big = torch.Generator().manual_seed(0)
    truth, _ = kernel_distance(torch.randn(2000, 3, generator=big), torch.randn(2000, 3, generator=big) + 0.7)
    spread = float(torch.tensor(values).std())
    assert sum(values) / 150 == pytest.approx(truth, abs=4 * spread / 150**0.5 + 0.03)
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.35)


def test_bad_feature_sets_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="3 and 4 features"):
        frechet_distance(torch.randn(5, 3), torch.randn(5, 4))
    with pytest.raises(InputError, match="not finite"):
        frechet_distance(torch.full((3, 2), torch.nan), torch.randn(5, 2))
    with pytest.raises(InputError, match="at least 3"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(4, 3))
