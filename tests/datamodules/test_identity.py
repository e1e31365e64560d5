"""What makes two records the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_privacy.datamodules.identity import content_digest, item_digest, read_identities, record_number
from lightning_privacy.datamodules.strata import read_strata
from lightning_privacy.errors import SplitError
from lightning_privacy.testing.toy_data import ToyImages

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(plain, plain)
def test_digest_tells_values_apart(a, b):
    # repr tells 1 from True and from "1"; dicts compare without order.
    same = a == b and _types(a) == _types(b)
    assert (item_digest(a) == item_digest(b)) == same


def _types(value):
    if isinstance(value, list):
        return [_types(part) for part in value]
    if isinstance(value, dict):
        return {key: _types(part) for key, part in value.items()}
    return type(value)


def test_digest_sees_shape_type_and_mode():
    zeros = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.int32),
        Image.new("L", (2, 2)),
        Image.new("RGB", (2, 2)),
        Image.new("L", (4, 1)),
        "0000",
        [0, 0, 0, 0],
    ]
    assert len({item_digest(each) for each in zeros}) == len(zeros)
    assert item_digest(np.zeros((2, 2), np.float32)) == item_digest(torch.zeros(2, 2))
    assert item_digest(torch.arange(6).view(2, 3).T) == item_digest(torch.arange(6).view(2, 3).T.contiguous())
    assert item_digest(np.arange(6).reshape(2, 3).T) == item_digest(np.ascontiguousarray(np.arange(6).reshape(2, 3).T))


def test_content_is_the_picture():
    picture, other = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    assert content_digest({"x": picture, "caption": "a"}) == content_digest({"x": picture, "caption": "b"})
    assert content_digest((picture, 0)) == content_digest([picture, 1])
    assert content_digest((picture, 0)) != content_digest((other, 0))
    assert content_digest(("text", 0)) != content_digest(("text", 1))  # no array: the whole item
    tokens = {"input_ids": torch.tensor([1, 2]), "attention_mask": torch.tensor([1, 1])}
    assert content_digest(tokens) != content_digest({**tokens, "input_ids": torch.tensor([1, 3])})


def test_an_object_without_bytes_asks_for_record_id():
    with pytest.raises(SplitError, match=r"holds a builtins\.object.*Pass `record_id`"):
        item_digest({"x": object()})


class Noisy(TensorDataset):
    def __getitem__(self, index):
        return tuple(part + torch.rand(()) for part in super().__getitem__(index))


class RareFlip(TensorDataset):
    def __getitem__(self, index):
        (x,) = super().__getitem__(index)
        return (x.flip(0) if torch.rand(()) < 0.1 else x,)


@pytest.mark.parametrize("kind", [Noisy, RareFlip])
def test_random_augmentation_asks_for_record_id(kind):
    data = kind(torch.arange(120.0).view(60, 2))
    before = torch.get_rng_state()
    with pytest.raises(SplitError, match=r"Two reads of record .* differ.*Pass `record_id`"):
        read_identities(data)
    assert torch.equal(before, torch.get_rng_state())
    ids, contents, name = read_identities(data, lambda dataset, index: float(dataset.tensors[0][index].sum()))
    assert ids == contents
    assert len(set(ids)) == 60
    assert "lambda" in name


def by_index(dataset, index):
    return index // 2


def test_record_id_by_import_path(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "user_code", types.SimpleNamespace(by_index=by_index, number=3))
    ids, _, name = read_identities(TensorDataset(torch.zeros(4, 2)), "user_code.by_index")
    assert name == "user_code.by_index"
    assert ids[0] == ids[1] != ids[2]
    for path in ("user_code.nothing", "no_such_module.f", "plain", "user_code.number"):
        with pytest.raises(SplitError, match="`record_id` of MembershipSplit names"):
            read_identities(TensorDataset(torch.zeros(4, 2)), path)


def test_the_datasets_own_record_id_is_found_through_subsets():
    toy = ToyImages(n=8)
    toy.setup("fit")
    mixed = ConcatDataset([Subset(toy.dataset, [5, 1]), toy.dataset])
    ids, _, name = read_identities(mixed)
    assert name == "the dataset's own record_id"
    assert ids == [toy.dataset.record_id(i) for i in [5, 1, *range(8)]]
    assert read_strata(mixed, "auto") == ([1, 1, 0, 1, 2, 3, 0, 1, 2, 3], "label")
    assert toy.dataset[3]["record"] == record_number(toy.dataset.record_id(3)) < 2**63


def test_strata():
    pairs = TensorDataset(torch.rand(3, 2), torch.tensor([1, 0, 1]))
    assert read_strata(pairs, "auto")[0][0] == read_strata(pairs, "auto")[0][2] != read_strata(pairs, "auto")[0][1]
    assert read_strata(TensorDataset(torch.rand(3, 2)), "auto") == ([0, 0, 0], None)
    assert read_strata([{"caption": "a"}, {"caption": "b"}], "auto") == (["a", "b"], "caption")
    assert read_strata([{"caption": "a"}, {"caption": "b"}], None) == ([0, 0], None)
    with pytest.raises(SplitError, match="stratifies by 'person', which record 0"):
        read_strata([{"caption": "a"}], "person")
