import pytest
import torch

from lightning_privacy.attacks.membership.prescreen import prescreen
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError


def with_confidence(phi, prefix="r"):
    phi = torch.as_tensor(phi, dtype=torch.float64)
    logits = torch.stack([phi, torch.zeros_like(phi)], 1).unsqueeze(1)
    labels = torch.zeros(len(phi), dtype=torch.long)
    return Signals(tuple(f"{prefix}{i}" for i in range(len(phi))), logits=logits, labels=labels)


def test_rate_cut_and_records_in_closed_form():
    members = with_confidence([5.0, -3.0, 6.0, 1.0, 7.0, 8.0, 9.0, 5.5, 6.5, 7.5], "m")
    others = with_confidence([-5.0, -2.0, 0.5, 1.0, 8.0])
    found = prescreen(members, others, fnr=0.1)
    assert found.cut == 1.0
    assert found.in_tail == ("m1",)
    assert found.tnr.value == pytest.approx(3 / 5)
    assert found.moved == pytest.approx(0.6 - 0.1)
    assert found.tnr.low <= 0.6 <= found.tnr.high
    assert not found.tnr.valid
    assert "at least 100 needed" in found.tnr.reason


def test_at_equal_losses_the_rate_is_the_allowed_one():
    g = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(20):
        found = prescreen(*(with_confidence(torch.randn(400, generator=g)) for _ in range(2)), 0.05, 300, seed)
        assert found.tnr.valid
        covered += found.tnr.low <= 0.05 <= found.tnr.high
    assert covered >= 16


def test_an_overfitted_model_has_lost_its_tail(overfitted_digits):
    found = prescreen(overfitted_digits.member, overfitted_digits.holdout, fnr=0.05)
    assert found.tnr.low > 0.1
    assert len(found.in_tail) <= 0.05 * len(overfitted_digits.member)
    assert set(found.in_tail) <= set(overfitted_digits.member.record_ids)


def test_complete_separation_keeps_an_interval():
    found = prescreen(with_confidence(torch.linspace(5, 6, 200)), with_confidence(torch.linspace(0, 1, 50)), fnr=0.05)
    assert found.tnr.value == 1.0
    assert found.tnr.low == pytest.approx(0.025 ** (1 / 50))  # Clopper and Pearson, 50 of 50


def test_bad_arguments_are_refused():
    some = with_confidence([0.0, 1.0])
    with pytest.raises(InputError, match="between 0 and 1"):
        prescreen(some, some, fnr=0.0)
    with pytest.raises(InputError, match="there are 2 and 0"):
        prescreen(some, with_confidence([]))
