"""The check of what leaves, without any engine."""

import numpy as np
import pytest
import torch

from lightning_privacy.errors import InputError
from lightning_privacy.federated.deny import LeakRefusedError, SecretScan, as_tensors, refuse_unasked

KEY = torch.sin(torch.arange(64.0) * 1.7)


def test_only_what_was_sent_comes_back():
    asked = {"a": (2,), "b": (3, 3)}
    refuse_unasked({"b": [3, 3]}, asked, "me")
    refuse_unasked({}, asked, "me")
    with pytest.raises(LeakRefusedError, match=r"me refused to send conv.key: the server did not send"):
        refuse_unasked({"a": (2,), "conv.key": (2,)}, asked, "me")
    with pytest.raises(LeakRefusedError, match="in other shapes"):
        refuse_unasked({"a": (64,)}, asked, "me")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_a_secret_is_found_in_every_number_type_and_place(dtype):
    secrets = {"lock/key": KEY, "nothing": torch.zeros(3)}
    for leak in (
        {"w": KEY.to(dtype)},
        {"w": torch.cat([torch.rand(7), KEY.float(), torch.rand(9)])},
        {"w": torch.outer(torch.rand(4), KEY)},
        {"raw": b"xyz" + KEY.to(dtype).view(torch.uint8).numpy().tobytes()},
        {"w": -0.25 * KEY.double()},
    ):
        with pytest.raises(LeakRefusedError, match="lock/key") as refusal:
            SecretScan("me").refuse(leak, secrets)
        assert str(float(KEY[3]))[:6] not in str(refusal.value)


def test_what_holds_no_secret_passes_also_where_none_is_known():
    scan = SecretScan("me")
    scan.refuse({"w": torch.rand(64)}, {"lock/key": KEY})
    scan.refuse({"w": KEY}, {})
    scan.refuse({"w": torch.zeros(9)}, {"constant": torch.zeros(9)})
    with pytest.raises(LeakRefusedError):  # one scan follows its secrets through the rounds
        scan.refuse({"w": 1 + KEY}, {"before/key": KEY, "key": 1 + KEY})


def test_arrays_of_either_kind_are_taken():
    made = as_tensors({"a": np.ones(2, np.float16), "b": torch.zeros(1), "c": 3.0})
    assert all(isinstance(v, torch.Tensor) for v in made.values()) and made["a"].dtype == torch.float16
    with pytest.raises(InputError, match="no tensor can be made"):
        as_tensors({"a": object()})
