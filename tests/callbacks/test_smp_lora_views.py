from collections import namedtuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_privacy.callbacks.smp_lora.views import picture_place, random_views, with_views

PICTURES = torch.rand(3, 3, 16, 12)
KEYS = [(0, i, 1) for i in range(3)]


def test_pictures_are_found_in_any_batch():
    assert picture_place({"label": torch.zeros(3), "image": PICTURES}) == "image"
    assert picture_place((PICTURES, torch.zeros(3))) == picture_place([PICTURES]) == 0
    assert picture_place((torch.zeros(3, 4), torch.zeros(3))) is None  # vectors
    assert picture_place({"x": torch.zeros(3, 4, 8, 8), "y": torch.zeros(3, 1, 2, 2)}) is None  # latents; too small
    assert picture_place({"x": torch.zeros(3, 3, 16, 16, dtype=torch.uint8)}) is None
    assert picture_place(PICTURES) is None


def test_a_view_is_a_function_of_its_key_alone():
    views = random_views(PICTURES, KEYS)
    assert torch.equal(views[1:2], random_views(PICTURES[1:2], KEYS[1:2]))
    assert not torch.equal(views, random_views(PICTURES, [(0, i, 2) for i in range(3)]))


def test_batches_keep_their_type_and_the_rest_of_their_content():
    labels, Pair = torch.arange(3), namedtuple("Pair", "x y")
    for batch in ({"image": PICTURES, "y": labels}, (PICTURES, labels), [PICTURES, labels], Pair(PICTURES, labels)):
        place = picture_place(batch)
        changed = with_views(batch, place, KEYS)
        assert type(changed) is type(batch)
        assert torch.equal(changed[place], random_views(PICTURES, KEYS))
        assert torch.equal(batch[place], PICTURES)
        assert torch.equal(list(changed.values() if isinstance(changed, dict) else changed)[-1], labels)


@given(st.integers(0, 10_000))
def test_views_move_pictures_a_little(key):
    # A horizontal ramp: its view is a ramp again, as steep but for the crop and the turn, maybe mirrored.
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32).contiguous()
    view = random_views(ramp, [(key,)])[0, 0]
    middle = view[12:20, 4:28]
    slope = (middle[:, -1] - middle[:, 0]).abs() / 23 * 31 / 2
    assert ((slope > 0.85) & (slope < 1.05)).all()
    assert float(view.min()) >= -1 and float(view.max()) <= 1


def test_half_the_views_are_mirrored():
    ramp = torch.linspace(-1, 1, 32).expand(400, 1, 32, 32).contiguous()
    views = random_views(ramp, [(i,) for i in range(400)])
    mirrored = int((views[:, 0, 16, 4] > views[:, 0, 16, 28]).sum())
    assert 140 < mirrored < 260
