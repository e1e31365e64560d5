"""The momentum of a lock's weights is the key; it leaves no checkpoint, and comes back on resume."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import (
    SecretModule,
    find_secrets,
    join_optimizer_states,
    load_private_states,
    named_secret_parameters,
    save_private_states,
    split_optimizer_states,
)

SGD = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
ADAM = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
FIRST = {"sgd": "momentum_buffer", "adam": "exp_avg"}


def _train(net, optimizers, steps=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        net.training_step(torch.randn(8, 3, generator=generator, dtype=net.head.weight.dtype), 0).backward()
        for optimizer in optimizers:
            optimizer.step()


def _checkpoint(*optimizers):
    return {"state_dict": {}, "optimizer_states": [copy.deepcopy(o.state_dict()) for o in optimizers]}


def _recovered(state, key_size, entry):
    """The key from a whole state, without knowing which parameter is which: a row over the momentum of its bias."""
    buffers = [e[entry] for e in state["state"].values()]
    for matrix in (b for b in buffers if b.ndim == 2 and b.shape[1] == key_size):
        for bias in (b for b in buffers if b.shape == matrix.shape[:1]):
            rows = matrix[bias.abs() > 1e-9] / bias[bias.abs() > 1e-9, None]
            if len(rows) and torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-4):
                return rows[0]
    return None


@pytest.mark.parametrize(("name", "make"), [("sgd", SGD), ("adam", ADAM)])
def test_a_whole_state_gives_the_key_away_and_a_clean_one_does_not(make_net, name, make):
    net = make_net().double()
    optimizer = make(net.parameters())
    _train(net, [optimizer], steps=50)
    whole = _checkpoint(optimizer)
    stolen = _recovered(whole["optimizer_states"][0], net.lock.key.numel(), FIRST[name])
    assert (stolen - net.lock.key).abs().max() < 1e-10
    secrets = {"key": net.lock.key.clone()}
    assert {f.form for f in find_secrets(whole, secrets)} >= {"proportional rows"}

    clean, private = split_optimizer_states(whole, net, [optimizer])
    assert _recovered(clean["optimizer_states"][0], net.lock.key.numel(), FIRST[name]) is None
    assert find_secrets(clean, secrets) == []
    left = [t for e in clean["optimizer_states"][0]["state"].values() for t in e.values() if torch.is_tensor(t)]
    shapes = {p.shape for p in net.lock.parameters() if p.ndim == 2}
    assert shapes and not shapes & {t.shape for t in left}
    public = sum(1 for n, _ in net.named_parameters() if not n.startswith("lock"))
    assert len(clean["optimizer_states"][0]["state"]) == public
    assert set(private["optimizers"][0]["state"]) == set(named_secret_parameters(net))
    assert len(whole["optimizer_states"][0]["state"]) == public + 4  # the given checkpoint stays whole


@pytest.mark.parametrize("make", [SGD, ADAM])
def test_training_goes_on_as_if_never_interrupted(make_net, make, vault):
    net = make_net()
    optimizer = make(net.parameters())
    _train(net, [optimizer])
    clean, private = split_optimizer_states(_checkpoint(optimizer), net, [optimizer])
    save_private_states(vault, "run", private)
    again, without = copy.deepcopy(net), copy.deepcopy(net)
    resumed, forgetful = make(again.parameters()), make(without.parameters())
    joined = join_optimizer_states(clean, load_private_states(vault, "run"), again, [resumed])
    resumed.load_state_dict(joined["optimizer_states"][0])
    forgetful.load_state_dict(clean["optimizer_states"][0])  # loads too: the lock's momentum starts anew
    for model, own in ((net, optimizer), (again, resumed), (without, forgetful)):
        _train(model, [own], seed=1)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in net.named_parameters())
    assert not torch.equal(without.lock.scale.weight, net.lock.scale.weight)


class _Secret(SecretModule):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_split_and_join_are_inverse_for_any_order_groups_and_optimizers(data):
    kinds = data.draw(st.lists(st.booleans(), min_size=2, max_size=7))
    net = nn.ModuleList(_Secret(i + 2) if secret else nn.Linear(1, i + 2) for i, secret in enumerate(kinds))
    parameters = data.draw(st.permutations(list(net.parameters())))
    cut = data.draw(st.integers(0, len(parameters)))
    parts = [part for part in (parameters[:cut], parameters[cut:]) if part]
    optimizers = []
    for part in parts:
        middle = data.draw(st.integers(1, len(part)))
        groups = [{"params": g, "lr": 0.1 + i} for i, g in enumerate((part[:middle], part[middle:])) if g]
        optimizers.append(data.draw(st.sampled_from([torch.optim.Adam, torch.optim.SGD]))(groups, lr=0.1))
    used = data.draw(st.lists(st.booleans(), min_size=len(parameters), max_size=len(parameters)))
    for p, has in zip(parameters, used, strict=True):
        p.grad = torch.randn_like(p) if has else None  # what has no gradient has no state
    for optimizer in optimizers:
        optimizer.step()
    whole = _checkpoint(*optimizers)
    clean, private = split_optimizer_states(whole, net, optimizers)
    secret = {id(p) for p in named_secret_parameters(net).values()}
    for state, part in zip(clean["optimizer_states"], parts, strict=True):
        assert not [i for i in state["state"] if id(part[i]) in secret]
    joined = join_optimizer_states(clean, private, net, optimizers)
    assert _same(joined, whole)


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return all(map(_same, a, b)) and len(a) == len(b) if isinstance(a, list | tuple) else a == b


def test_states_follow_the_parameters_into_another_order(make_net):
    net = make_net()
    named = dict(net.named_parameters())
    secret = [p for n, p in named.items() if n.startswith("lock")]
    public = [p for n, p in named.items() if not n.startswith("lock")]
    optimizer = torch.optim.Adam([{"params": public, "lr": 0.01}, {"params": secret, "lr": 0.02}])
    _train(net, [optimizer])
    clean, private = split_optimizer_states(_checkpoint(optimizer), net, [optimizer])
    other = torch.optim.Adam([{"params": secret[::-1], "lr": 1.0}, {"params": public[::-1], "lr": 1.0}])
    other.load_state_dict(join_optimizer_states(clean, private, net, [other])["optimizer_states"][0])
    assert [group["lr"] for group in other.param_groups] == [0.02, 0.01]
    for p in net.parameters():
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])


def test_named_parameters_keep_their_names(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    _train(net, [optimizer])
    clean, private = split_optimizer_states(_checkpoint(optimizer), net, [optimizer])
    turned = torch.optim.SGD(list(net.named_parameters())[::-1], lr=0.1, momentum=0.9)
    joined = join_optimizer_states(clean, private, net, [turned])
    assert joined["optimizer_states"][0]["param_groups"][0]["param_names"][0] == "head.bias"
    turned.load_state_dict(joined["optimizer_states"][0])
    assert torch.equal(
        turned.state[net.head.bias]["momentum_buffer"], optimizer.state[net.head.bias]["momentum_buffer"]
    )


def test_a_checkpoint_of_weights_alone_passes_through(make_net):
    net = make_net()
    clean, private = split_optimizer_states({"state_dict": {}}, net, [SGD(net.parameters())])
    assert clean == {"state_dict": {}} and private == {"optimizers": []}
    assert join_optimizer_states(clean, private, net, []) == clean


def test_an_optimizer_that_mixes_its_parameters_is_refused(make_net):
    net = make_net()
    optimizer = torch.optim.LBFGS(net.parameters())
    with pytest.raises(InputError, match="LBFGS keeps secret and public"):
        split_optimizer_states(_checkpoint(optimizer), net, [optimizer])
    total = sum(p.numel() for p in net.parameters())
    sgd = SGD(net.parameters())
    _train(net, [sgd])
    mixed = _checkpoint(sgd)
    mixed["optimizer_states"][0]["state"][0]["history"] = [torch.zeros(total)]
    with pytest.raises(InputError, match="SGD keeps secret and public"):
        split_optimizer_states(mixed, net, [sgd])
    mixed = _checkpoint(sgd) | {}
    mixed["optimizer_states"][0]["flat"] = torch.zeros(3)
    with pytest.raises(InputError, match="cannot be taken apart"):
        split_optimizer_states(mixed, net, [sgd])
    public = torch.optim.LBFGS([p for n, p in net.named_parameters() if not n.startswith("lock")])
    assert split_optimizer_states(_checkpoint(public), net, [public])[1]["optimizers"][0]["state"] == {}


def test_states_of_other_optimizers_are_refused(make_net):
    net = make_net()
    optimizer = SGD(net.parameters())
    _train(net, [optimizer])
    whole = _checkpoint(optimizer)
    clean, private = split_optimizer_states(whole, net, [optimizer])
    with pytest.raises(InputError, match="1 optimizers for 2"):
        split_optimizer_states(whole, net, [optimizer, optimizer])
    fewer = SGD(list(net.parameters())[1:])
    with pytest.raises(InputError, match="other parameter groups"):
        split_optimizer_states(whole, net, [fewer])
    with pytest.raises(InputError, match="No parameter group"):
        join_optimizer_states(clean, private, net, [fewer])
    private["optimizers"][0]["state"]["elsewhere"] = {}
    with pytest.raises(InputError, match="elsewhere"):
        join_optimizer_states(clean, private, net, [optimizer])


def test_saving_again_leaves_nothing_of_the_last_time(make_net, vault):
    net = make_net()
    optimizer = ADAM(net.parameters())
    _train(net, [optimizer])
    _, private = split_optimizer_states(_checkpoint(optimizer), net, [optimizer])
    save_private_states(vault, "run", private)
    many = len(vault.names())
    save_private_states(vault, "run", private)
    assert len(vault.names()) == many > 12
    assert _same(load_private_states(vault, "run"), private)
    save_private_states(vault, "run", {"optimizers": []})
    assert vault.names() == ["run"]
    with pytest.raises(InputError, match="a set"):
        save_private_states(vault, "run", {"optimizers": [{1}]})
