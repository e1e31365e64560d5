from collections import namedtuple

import torch

from lightning_privacy.callbacks.smp_lora.joined import batch_size, joined_batch, joined_draw
from lightning_privacy.protocols import Draw

Pair = namedtuple("Pair", "x name")


def test_batches_of_any_type_are_joined():
    for wrap in (lambda x, n: {"x": x, "name": n}, Pair, lambda x, n: [x, n], lambda x, n: (x, n)):
        whole = joined_batch([wrap(torch.zeros(2, 3), ["a", "b"]), wrap(torch.ones(1, 3), ["c"])])
        assert type(whole) is type(wrap(0, 0))
        x, name = whole.values() if isinstance(whole, dict) else whole
        assert x.sum(1).tolist() == [0, 0, 3] and name == ["a", "b", "c"]
        assert batch_size(whole) == 3


def test_batches_that_do_not_fit_together_are_left_alone():
    pictures = {"x": torch.zeros(2, 3)}
    assert joined_batch([pictures, {"x": torch.zeros(2, 4)}]) is None
    assert joined_batch([pictures, {"y": torch.zeros(2, 3)}]) is None
    assert joined_batch([pictures, {"x": torch.zeros(2, 3).double()}]) is None
    assert joined_batch([pictures, torch.zeros(2, 3)]) is None
    scale = torch.tensor(1.0)  # belongs to the batch, not to a record
    assert joined_batch([{**pictures, "scale": scale}, {**pictures, "scale": scale}]) is None
    assert joined_batch([{**pictures, "table": torch.zeros(7)}] * 2) is None
    assert joined_batch([{**pictures, "other": object()}] * 2) is None


def test_draws_are_joined():
    draws = [Draw(torch.tensor([1, 2]), torch.zeros(2, 4)), Draw(torch.tensor([3]), torch.ones(1, 4))]
    whole = joined_draw(draws)
    assert whole.timesteps.tolist() == [1, 2, 3] and whole.noise.sum(1).tolist() == [0, 0, 4]
    empty = joined_draw([Draw(), Draw()])
    assert empty.timesteps is None and empty.noise is None
    assert joined_draw([draws[0], Draw()]) is None
    assert joined_draw([draws[0], Draw(torch.tensor([3]), torch.ones(1, 5))]) is None
