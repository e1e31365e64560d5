"""Replacing layers: what is found, what is kept, what is refused."""

import pytest
import torch
from torch import nn

from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.errors import InputError, NoEffectError, UnsupportedStrategyError


class Wrap(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.extra = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        return self.inner(x)


class Other(Wrap):
    """Another wrapper, no subclass relation that matters: wraps by name."""


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.ReLU())


def test_by_type_finds_nested_layers():
    model = net()
    report = replace_modules(model, Wrap, types=nn.Linear)
    assert report.layers == ("0", "1.0")
    assert isinstance(model[0], Wrap)
    assert isinstance(model[1][0], Wrap)
    assert report.parameters_added == 2 * 6
    assert report.layout == {"layers": ["0", "1.0"], "replacement": "Wrap"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["0"], ("0",)),
        (["1.*"], ("1.0", "1.1")),
        (["re:\\d"], ("0", "1", "2")),
        (["re:1\\.[01]"], ("1.0", "1.1")),
        (["2", "0"], ("0", "2")),
    ],
)
def test_by_name(names, found):
    assert replace_modules(net(), Wrap, names=names).layers == found


def test_type_and_name_must_both_hold():
    assert replace_modules(net(), Wrap, types=nn.Linear, names=["1.*"]).layers == ("1.0",)


def test_second_call_changes_nothing_and_reports_the_same():
    model = net()
    first = replace_modules(model, Wrap, types=nn.Linear)
    layers = [model[0], model[1][0], model[0].inner]
    assert replace_modules(model, Wrap, types=nn.Linear) == first
    assert [model[0], model[1][0], model[0].inner] == layers


@pytest.mark.parametrize("how", [{"types": nn.Linear}, {"names": ["0", "1.0"]}, {"types": nn.Linear, "names": ["*0"]}])
def test_second_call_after_another_defence_wrapped_the_same_layers(how):
    model = net()
    first = replace_modules(model, Wrap, **how)
    second = replace_modules(model, Outer, names=["0", "1.0"])
    assert isinstance(model[0], Outer)
    assert replace_modules(model, Wrap, **how) == first
    assert replace_modules(model, Outer, names=["0", "1.0"]) == second
    assert isinstance(model[0], Outer)
    assert isinstance(model[0].inner, Wrap)
    assert isinstance(model[0].inner.inner, nn.Linear)


def test_shared_layer_stays_shared():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared})
    report = replace_modules(model, Wrap, types=nn.Linear)
    assert report.layers == ("a", "b")
    assert model["a"] is model["b"]
    assert report.parameters_added == 6
    assert replace_modules(model, Wrap, types=nn.Linear) == report


def test_device_dtype_and_modes_are_kept():
    model = net().to(torch.bfloat16)
    model[1].eval()
    model[1][0].weight.requires_grad_(False)
    replace_modules(model, Wrap, types=nn.Linear)
    new = model[1][0]
    assert new.extra.weight.dtype == torch.bfloat16
    assert new.count.dtype == torch.long
    assert not new.training
    assert not new.extra.training
    assert model[0].training
    assert not new.inner.weight.requires_grad


def test_meta_device_is_kept():
    with torch.device("meta"):
        model = net()
    replace_modules(model, Wrap, types=nn.Linear)
    assert model[0].extra.weight.device.type == "meta"


def test_kept_part_of_another_dtype_stays():
    mixed = nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.LayerNorm(2))
    model = nn.ModuleDict({"block": mixed})
    replace_modules(model, Wrap, names=["block"])
    assert model["block"].inner[1].weight.dtype == torch.float32
    assert model["block"].extra.weight.dtype == torch.bfloat16


def test_random_state_is_left_alone_and_weights_depend_on_seed_and_name():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other, third = net(), net(), net()
    torch.set_rng_state(before)
    replace_modules(one, Wrap, types=nn.Linear)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    replace_modules(other, Wrap, types=nn.Linear)
    replace_modules(third, Wrap, types=nn.Linear, seed=1)
    assert torch.equal(one[0].extra.weight, other[0].extra.weight)
    assert not torch.equal(one[0].extra.weight, one[1][0].extra.weight)
    assert not torch.equal(one[0].extra.weight, third[0].extra.weight)


def test_factory_makes_the_layer_and_must_keep_its_promise():
    model = net()
    replace_modules(model, nn.Identity, types=nn.ReLU, factory=lambda old: nn.Identity())
    assert isinstance(model[2], nn.Identity)
    with pytest.raises(InputError, match="returned a ReLU where surgery asked for a Wrap"):
        replace_modules(net(), Wrap, types=nn.ReLU, factory=lambda old: old)


def test_name_that_matches_nothing_is_an_error_even_beside_one_that_does():
    with pytest.raises(NoEffectError, match=r"\['nope\.\*'\].*called 0, 1, 1.0"):
        replace_modules(net(), Wrap, names=["0", "nope.*"])


def test_type_that_matches_nothing_reports_nothing():
    assert replace_modules(net(), Wrap, types=nn.Conv2d).layers == ()


def test_refuses_everything_and_broken_patterns():
    with pytest.raises(InputError, match="would replace every layer"):
        replace_modules(net(), Wrap)
    with pytest.raises(InputError, match="no regular expression"):
        replace_modules(net(), Wrap, names=["re:("])


def test_refuses_a_wrapped_module():
    model = nn.ModuleDict({"inner": nn.DataParallel(net())})
    with pytest.raises(UnsupportedStrategyError, match="DataParallel.*plain module, before it is wrapped"):
        replace_modules(model, Wrap, types=nn.Linear)


def _wrapped_on_rank():
    from torch.nn.parallel import DistributedDataParallel

    try:
        replace_modules(DistributedDataParallel(net()), Wrap, types=nn.Linear)
    except UnsupportedStrategyError as refusal:
        return str(refusal)
    return "replaced"


@pytest.mark.dist
def test_refuses_ddp(rank_pool):
    assert all("DistributedDataParallel" in answer for answer in rank_pool.run(_wrapped_on_rank))
