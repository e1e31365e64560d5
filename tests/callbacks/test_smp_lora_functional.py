import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_privacy.callbacks.smp_lora.functional import (
    batch_gain,
    calibrated_feature,
    mp_objective,
    per_sample_gain,
    proxy_loss,
    smp_denominator,
    smp_objective,
)
from lightning_privacy.callbacks.smp_lora.proxy import ProxyMLP, read_error
from lightning_privacy.callbacks.smp_lora.replay import Replay
from lightning_privacy.errors import InputError
from lightning_privacy.protocols import Draw

logits = st.lists(st.floats(-8, 8), min_size=1, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))


@given(logits, logits)
def test_gain_is_equation_five(members, nonmembers):
    h = torch.sigmoid
    by_hand = (h(members).log().sum() / (2 * len(members))) + ((1 - h(nonmembers)).log().sum() / (2 * len(nonmembers)))
    torch.testing.assert_close(batch_gain(members, nonmembers), by_hand)
    assert batch_gain(members, nonmembers) <= 0
    torch.testing.assert_close(per_sample_gain(members, nonmembers).mean(), batch_gain(members, nonmembers))
    torch.testing.assert_close(proxy_loss(members, nonmembers), -batch_gain(members, nonmembers))


def test_a_guessing_proxy_gains_log_half():
    assert float(batch_gain(torch.zeros(5), torch.zeros(3))) == pytest.approx(-math.log(2))
    assert float(batch_gain(torch.zeros(5))) == pytest.approx(-math.log(2))


@given(st.floats(0.01, 2), st.floats(-5, 0), st.floats(0, 20))
def test_gradient_of_the_ratio_is_appendix_d(loss_value, gain_value, strength):
    loss, gain = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (loss_value, gain_value))
    smp_objective(loss, gain, strength, 1e-5).backward()
    d = 1 - strength * gain_value + 1e-5
    assert float(loss.grad) == pytest.approx(1 / d, rel=1e-9)
    assert float(gain.grad) == pytest.approx(strength * loss_value / d**2, rel=1e-9, abs=1e-12)


def test_ranks_average_to_the_global_ratio():
    torch.manual_seed(0)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x, strength, delta = torch.randn(8, 3, dtype=torch.float64), 3.0, 1e-5

    def parts(rows):
        return (rows @ weight).square().mean(), torch.nn.functional.logsigmoid(rows @ weight).mean()

    whole = smp_objective(*parts(x), strength, delta)
    (expected,) = torch.autograd.grad(whole, weight)
    loss, gain = (v.detach() for v in parts(x))
    ranks = [
        smp_objective(*parts(half), strength, delta, global_loss=loss, global_gain=gain) for half in (x[:4], x[4:])
    ]
    grads = [torch.autograd.grad(value, weight)[0] for value in ranks]
    torch.testing.assert_close(sum(grads) / 2, expected, rtol=1e-12, atol=1e-14)
    for value in ranks:  # every rank reports the global objective
        torch.testing.assert_close(value, whole)
    naive = [smp_objective(*parts(half), strength, delta) for half in (x[:4], x[4:])]
    wrong = sum(torch.autograd.grad(value, weight)[0] for value in naive) / 2
    assert not torch.allclose(wrong, expected, rtol=1e-3)


def test_strength_zero_is_the_loss_bit_for_bit():
    loss, gain = torch.tensor(0.3711, requires_grad=True), torch.tensor(-3.3, requires_grad=True)
    value = smp_objective(loss, gain, 0.0, 0.0, global_loss=loss.detach(), global_gain=gain.detach())
    value.backward()
    assert value.item() == loss.item()
    assert float(loss.grad) == 1.0
    assert float(gain.grad) == 0.0
    assert mp_objective(loss, gain, 0.0).item() == loss.item()
    assert smp_denominator(gain, 0.0, 0.0).item() == 1.0


def test_calibration_cancels_difficulty():
    reference = torch.tensor([0.1, 10.0, 1.0])
    torch.testing.assert_close(calibrated_feature(reference * 0.5, reference), torch.full((3,), 4 * math.log(0.5)))


def test_proxy_refuses_another_map_size_and_names_the_remedy():
    proxy = ProxyMLP(read_error("error_map", torch.rand(2, 4, 8, 8)).shape[1])
    with pytest.raises(InputError, match=r"256 features a record and got 1024.*pooled_map"):
        proxy(read_error("error_map", torch.rand(2, 4, 16, 16)))
    pooled = ProxyMLP(read_error("pooled_map", torch.rand(2, 4, 8, 8)).shape[1])
    assert pooled(read_error("pooled_map", torch.rand(2, 4, 16, 24))).shape == (2,)


def test_calibrated_input_needs_a_reference():
    with pytest.raises(InputError, match="proxy: scalar"):
        read_error("calibrated", torch.rand(2, 4, 8, 8), None, Draw(torch.tensor([1, 2])))


def test_proxy_dropout_leaves_the_global_random_state_alone():
    proxy = ProxyMLP(4, (256,), dropout=0.5)  # wide: two masks that agree on all live units are out of the question
    before = torch.random.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    first, second = proxy(torch.ones(3, 4), generator), proxy(torch.ones(3, 4), generator)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(proxy(torch.ones(3, 4)), proxy(torch.ones(3, 4)))


def test_replay_keeps_the_last_steps():
    replay = Replay(2)
    for step in range(3):
        replay.add(torch.full((1, 1), float(step)), torch.full((2, 1), -float(step)))
    members, nonmembers = replay.all()
    assert members.flatten().tolist() == [1, 2]
    assert nonmembers.flatten().tolist() == [-1, -1, -2, -2]


@pytest.mark.parametrize(("kind", "features"), [("error_map", 1), ("scalar", 1), ("calibrated", None)])
def test_an_error_of_one_number_a_record_is_read_as_a_map_of_one(kind, features):
    error, reference = torch.rand(4) + 0.1, torch.rand(4) + 0.1
    found = read_error(kind, error, reference)
    assert torch.equal(found, read_error(kind, error[:, None], reference[:, None]))
    assert features is None or found.shape == (4, features)
    draws = torch.rand(4, 3)
    assert torch.equal(read_error("multi_t", draws), draws)
