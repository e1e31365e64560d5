import math

import pytest
import torch

from lightning_privacy.callbacks import NoPeek
from lightning_privacy.callbacks.nopeek.functional import distance_correlation
from lightning_privacy.errors import InputError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def textbook(x, y):
    """Szekely et al. 2007, definitions 4 and 5, by loops."""

    def centred(rows):
        n = len(rows)
        d = [[math.dist(a, b) for b in rows] for a in rows]
        row = [sum(line) / n for line in d]
        whole = sum(row) / n
        return [[d[i][j] - row[i] - row[j] + whole for j in range(n)] for i in range(n)]

    def product(a, b):
        return (
            sum(p * q for line, other in zip(a, b, strict=True) for p, q in zip(line, other, strict=True)) / len(a) ** 2
        )

    a, b = centred(x.flatten(1).tolist()), centred(y.flatten(1).tolist())
    return math.sqrt(product(a, b) / math.sqrt(product(a, a) * product(b, b)))


@pytest.mark.parametrize("n", [2, 5, 17])
def test_it_is_the_textbooks_double_sum(n):
    x, y = draw(n, 2, 3), draw(n, 4, seed=1) + draw(n, 2, 3).flatten(1)[:, :4]
    assert distance_correlation(x, y).item() == pytest.approx(textbook(x, y), abs=1e-5)


def test_linear_relations_score_1():
    x = draw(30, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1))[0]
    assert distance_correlation(x, 7 - 3 * x @ turn).item() == pytest.approx(1, abs=1e-5)
    assert distance_correlation(x[:, :1], -x[:, :1]).item() == pytest.approx(1, abs=1e-5)


def test_independent_variables_score_near_0_and_it_sees_what_correlation_does_not():
    x = draw(800, 1)
    assert distance_correlation(x, draw(800, 1, seed=1)).item() < 0.12
    assert distance_correlation(x, x.square()).item() > 0.4  # uncorrelated


def test_gradient_is_exact():
    x, z = draw(5, 3, dtype=torch.float64), draw(5, 2, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distance_correlation(x, z), z)


@pytest.mark.parametrize("same", [torch.zeros(6, 4), torch.tensor([[1.0, 2.0]] * 5 + [[3.0, 4.0]])])
def test_equal_records_give_a_finite_value_and_gradient(same):
    z = same.clone().requires_grad_()
    value = distance_correlation(draw(6, 3), z)
    value.backward()
    assert value.isfinite() and z.grad is not None and z.grad.isfinite().all()


def test_one_record_and_a_constant_layer_score_0():
    assert distance_correlation(draw(1, 3), draw(1, 2)).item() == 0
    assert distance_correlation(draw(8, 3), torch.ones(8, 2)).item() == 0


def test_training_lowers_the_correlation_of_the_tapped_layer(tmp_path):
    def correlation(defences):
        module = fit(tmp_path, TinyClassifier(), plain_images(16), defences, max_epochs=4).module
        data = plain_images(32)
        data.setup("fit")
        pictures = torch.stack([data.dataset[i]["image"] for i in range(32)])
        return distance_correlation(pictures, module.network.conv1(pictures)).item()

    assert correlation([NoPeek("network.conv1", strength=5.0)]) < correlation([]) - 0.05


def test_the_strength_reaches_the_network_up_to_the_tap_alone(tmp_path):
    def trained(defences):
        return fit(tmp_path, TinyClassifier(), plain_images(8), defences, max_steps=1).weights

    plain, defended = trained([]), trained([NoPeek("*.conv1")])
    moved = {name for name in plain if not torch.equal(plain[name], defended[name])}
    assert moved and all(name.startswith("network.conv1") for name in moved)


def test_it_logs_and_refuses_a_negative_weight(tmp_path):
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [NoPeek("network.conv1")], max_steps=1)
    assert 0 < fitted.trainer.callback_metrics["defence/nopeek/distance_correlation"] <= 1
    with pytest.raises(InputError, match="`strength` is -1"):
        NoPeek("network.conv1", strength=-1)
