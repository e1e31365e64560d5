import pytest
import torch

from lightning_privacy.core.pairwise import double_centred, pairwise_distances, squared_distances


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_distances_are_those_of_cdist(offset):
    rows = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0)) + offset
    expected = torch.cdist(rows.flatten(1).double(), rows.flatten(1).double())
    torch.testing.assert_close(pairwise_distances(rows).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(squared_distances(rows).double(), expected.square(), rtol=1e-4, atol=1e-3)
    assert not pairwise_distances(rows).diagonal().any()


def test_gradient_is_exact_and_finite_where_records_are_equal():
    rows = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(pairwise_distances, rows.clone().requires_grad_())
    equal = torch.zeros(4, 3, requires_grad=True)
    pairwise_distances(equal).sum().backward()
    assert equal.grad is not None and not equal.grad.any()


def test_double_centring_is_a_projection_from_both_sides():
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = torch.eye(6, dtype=torch.float64) - 1 / 6
    torch.testing.assert_close(double_centred(matrix), h @ matrix @ h)
