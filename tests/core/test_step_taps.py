import pytest
import torch
from torch import nn

from lightning_privacy.core.step_taps import StepTaps
from lightning_privacy.errors import InputError, NoEffectError


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def hooks(net):
    return sum(len(m._forward_hooks) for m in net.modules())


def test_the_first_pass_is_kept_whatever_runs_afterwards(net):
    taps, x = StepTaps("mine", ["1"]), torch.ones(4, 2)
    taps.listen(net)
    net(x)
    net(torch.zeros(7, 2))
    assert torch.equal(taps.take(4)["1"], net[1](net[0](x)))
    assert hooks(net) == 0


def test_a_pass_without_a_graph_is_not_the_one(net):
    taps = StepTaps("mine", ["0"])
    taps.listen(net)
    with torch.no_grad():
        net(torch.zeros(4, 2))
    net(torch.ones(4, 2))
    assert torch.equal(taps.take(4)["0"], net[0](torch.ones(4, 2)))


def test_a_skipped_batch_leaves_nothing_behind(net):
    taps = StepTaps("mine", ["0", "2"])
    taps.listen(net)
    net(torch.ones(3, 2))
    taps.listen(net)
    net(torch.ones(5, 2))
    assert {len(v) for v in taps.take(5).values()} == {5}
    taps.listen(net)
    taps.close()
    assert hooks(net) == 0


def test_what_cannot_be_read_is_said(net):
    taps = StepTaps("mine", ["0"])
    with pytest.raises(NoEffectError, match="`mine` was not told of the start"):
        taps.take(4)
    taps.listen(net)
    with pytest.raises(NoEffectError, match="did not run"):
        taps.take(4)
    taps.listen(net)
    net(torch.ones(4, 2))
    with pytest.raises(InputError, match=r"`mine` reads 0, which gave \(4, 3\) for a batch of 5 records"):
        taps.take(5)
    net[0].requires_grad_(False)
    taps.listen(net)
    net(torch.ones(4, 2))
    with pytest.raises(NoEffectError, match="no trainable weight lies before it"):
        taps.take(4)
    assert hooks(net) == 0
    with pytest.raises(NoEffectError, match="No layer of Sequential is called `absent`"):
        StepTaps("mine", ["absent"]).listen(net)


def test_blended_pictures_are_refused(net):
    net.mixup = 0.2
    with pytest.raises(InputError, match="Set mixup to 0"):
        StepTaps("mine", ["0"]).listen(net)
