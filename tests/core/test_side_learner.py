"""What is trained beside the model: apart from it, equal on ranks, restored exactly."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_privacy.core.side_learner import SideLearner
from lightning_privacy.testing.fitting import compare


def make(seed=0, lr=0.1):
    return SideLearner(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        lambda p: torch.optim.Adam(p, lr=lr),
        "cpu",
        seed,
    )


def data(n=8, seed=0):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1, keepdim=True)


def fit(learner, steps=5, batch=None):
    x, y = batch or data()
    return [learner.step(lambda: (learner.module(x) - y).square().mean()).item() for _ in range(steps)]


def test_building_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = make()
    torch.manual_seed(2)
    assert not compare(dict(make().module.state_dict()), dict(one.module.state_dict()))
    assert compare(dict(make(seed=1).module.state_dict()), dict(one.module.state_dict()))


def test_step_is_adams():
    learner = make()
    x, y = data()
    oracle = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    oracle.load_state_dict(learner.module.state_dict())
    adam = torch.optim.Adam(oracle.parameters(), lr=0.1)
    for _ in range(5):
        adam.zero_grad()
        (oracle(x) - y).square().mean().backward()
        adam.step()
    losses = fit(learner)
    assert losses[-1] < losses[0]
    assert not compare(dict(learner.module.state_dict()), dict(oracle.state_dict()))
    assert learner.steps == 5


def test_state_holds_tensors_and_continues_exactly(tmp_path):
    through = make()
    fit(through, 3)
    torch.rand(2, generator=through.generator)
    torch.save(through.state_dict(), tmp_path / "state")
    fit(through, 3)
    resumed = make(seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    fit(resumed, 3)
    assert not compare(resumed.state_dict(), through.state_dict())
    assert resumed.steps == 6


def test_saved_weights_do_not_move_with_training():
    learner = make()
    state = learner.state_dict()
    before = {k: v.clone() for k, v in state["module"].items()}
    fit(learner)
    assert not compare(state["module"], before)


def test_frozen_lets_gradients_through_but_not_in():
    learner = make()
    x = torch.randn(4, 3, requires_grad=True)
    with learner.frozen() as h:
        out = h(x).sum()
    out.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in learner.module.parameters())


def test_frozen_thaws_after_an_error():
    learner = make()
    with pytest.raises(ZeroDivisionError), learner.frozen():
        raise ZeroDivisionError
    assert all(p.requires_grad for p in learner.module.parameters())


def test_steps_in_fp32_under_autocast_and_no_grad():
    learner = make()
    x, y = data()
    seen = []

    def loss():
        out = learner.module(x)
        seen.append(out.dtype)
        return (out - y).square().mean()

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        learner.step(loss)
    assert seen == [torch.float32]
    assert learner.steps == 1


def _train_on_rank(seed):
    torch.manual_seed(seed + dist.get_rank())  # another global state on each rank
    learner = make(seed=seed + dist.get_rank())  # and another seed: rank 0's weights are broadcast
    x, y = data()
    half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    fit(learner, 3, (x[half], y[half]))
    return dict(learner.module.state_dict())


@pytest.mark.dist
def test_ranks_stay_equal_and_equal_one_process(rank_pool):
    here, there = rank_pool.run(_train_on_rank, 0)
    assert not compare(here, there)
    alone = make()
    fit(alone, 3)
    assert not compare(here, dict(alone.module.state_dict()), tolerance=1e-5)
