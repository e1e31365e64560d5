"""Reconstruction metrics against independent sources and closed forms."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import (
    leak_share,
    paired_similarity,
    retrieved,
    ssim_sigma,
    victim_interval,
)


def pictures(n, size, channels=1, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def wang_ssim(x, y, sigma):
    """Return the mean SSIM of Wang et al. 2004 by SciPy's Gaussian filter, pictures mirrored at their border."""
    mean = lambda z: gaussian_filter(z, sigma, truncate=3.5, mode="mirror")  # noqa: E731
    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * cxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize("size", [8, 15, 16, 32])
def test_psnr_and_ssim_agree_with_independent_sources(size):
    a = pictures(3, size)
    b = (a + 0.2 * pictures(3, size, seed=1)).clamp(0, 1)
    found = paired_similarity(a, b)
    for k in range(3):
        x, y = a[k, 0].double().numpy(), b[k, 0].double().numpy()
        assert float(found["psnr"][k]) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=1.0), abs=1e-4)
        assert float(found["ssim"][k]) == pytest.approx(wang_ssim(x, y, ssim_sigma(size)), abs=1e-4)
    assert found["mse"].tolist() == pytest.approx((a - b).square().flatten(1).mean(1).tolist())


def test_equal_pictures_are_perfect():
    a = pictures(2, 16, 3)
    found = paired_similarity(a, a)
    assert torch.isinf(found["psnr"]).all() and found["ssim"].tolist() == pytest.approx([1, 1])


def test_pictures_below_the_window_are_one_clear_error():
    with pytest.raises(InputError, match="at least 4 pixels a side, but one has 3"):
        paired_similarity(pictures(1, 3), pictures(1, 3))


def test_only_a_reconstruction_nearest_to_its_own_victim_retrieves_it():
    victims = pictures(20, 8)
    assert retrieved(victims, victims).all()
    assert not retrieved(victims.roll(1, 0), victims).any()
    mean = victims.mean(0, keepdim=True).expand_as(victims)
    assert retrieved(mean, victims).sum() <= 1  # one picture is nearest to one victim
    twins = victims[:1].expand(2, -1, -1, -1)
    assert not retrieved(twins, twins).any()


def test_retrieval_keeps_the_order_of_near_neighbours():
    victims = 1000 + torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4) * 1e-2
    assert retrieved(victims + 1e-3, victims).all()


def test_the_interval_of_a_mean_has_the_normal_width_and_covers():
    g = torch.Generator().manual_seed(0)
    hits = 0
    for k in range(200):
        x = torch.randn(60, generator=g, dtype=torch.float64)
        low, high = victim_interval([x], resamples=500, seed=k)
        hits += low < 0 < high
    assert 0.90 <= hits / 200 <= 0.99
    assert high - low == pytest.approx(2 * 1.96 * float(x.std()) / math.sqrt(60), rel=0.15)


def test_the_interval_of_a_ratio_is_paired():
    floor, found = torch.full((50,), 10.0), torch.full((50,), 15.0)
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1))
    ceiling = torch.full((50,), 20.0) + noise
    share = victim_interval(
        [found + noise / 2, floor, ceiling],
        lambda f, b, c: (f.mean(1) - b.mean(1)) / (c.mean(1) - b.mean(1)),
    )
    assert share == pytest.approx((0.5, 0.5), abs=1e-6)
    with pytest.raises(InputError, match="at least two"):
        victim_interval([torch.ones(1)])


def test_a_reference_no_better_than_the_floor_gives_no_scale():
    with pytest.raises(InputError, match="no scale"):
        leak_share(torch.ones(3), torch.ones(3), torch.ones(3))
