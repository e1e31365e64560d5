"""The contract between a shared update and the attacks on it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.local_steps import simulated_update
from lightning_privacy.attacks.leakage.target import Secret, target_of
from lightning_privacy.attacks.leakage.update import LocalTraining, SharedUpdate
from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet


def network(norm="batch"):
    torch.manual_seed(0)
    return LeakageLeNet(6, 3, 8, norm=norm, width=4).double()


def records(n=4):
    torch.manual_seed(1)
    return torch.rand(n, 3, 8, 8).double(), torch.randint(6, (n,))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_shared_gradient_is_that_of_backward(mode):
    net, (images, labels) = network(), records()
    net.norm1.running_mean.fill_(0.3)
    update = share_update(net, images, labels, mode=mode)
    twin = copy.deepcopy(net).train(mode == "train")
    F.cross_entropy(twin(images), labels).backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(update.values[name], parameter.grad)


def test_sharing_and_simulating_leave_the_model_as_it_was():
    net, (images, labels) = network(), records()
    before = copy.deepcopy(net.state_dict())
    target = target_of(net, (3, 8, 8), 6)
    update = share_update(net, images, labels, local=LocalTraining(3, 0.1, 2))
    simulated_update(target, target.parameters, images, labels, update)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(torch.equal(target.buffers[name], before[name]) for name in target.buffers)


def test_a_target_holds_no_value_of_a_secret():
    net = network()
    target = target_of(net, (3, 8, 8), 6, {"norm1.weight": Secret((4,)), "norm1.bias": Secret((4,))})
    assert not {"norm1.weight", "norm1.bias"} & set(target.parameters)
    assert all(value.is_meta for value in target.skeleton.state_dict().values())


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}])
def test_a_weight_difference_is_that_of_torch_sgd(settings):
    net, (images, labels) = network(), records(6)
    order = torch.tensor([[0, 3], [5, 1], [2, 2]])
    update = share_update(net, images, labels, local=LocalTraining(3, 0.1, 2, order, **settings))
    twin = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, **settings)
    for rows in order:
        optimizer.zero_grad()
        F.cross_entropy(twin(images[rows]), labels[rows]).backward()
        optimizer.step()
    for (name, after), before in zip(twin.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(update.values[name], (after - before).detach())


def test_one_local_step_is_the_gradient_case():
    net, (images, labels) = network(), records()
    gradient = share_update(net, images, labels)
    difference = share_update(net, images, labels, local=LocalTraining(1, 0.25, 4))
    for name, value in difference.mean_gradient().items():
        torch.testing.assert_close(value, gradient.values[name])


def test_simulating_the_true_records_and_secrets_gives_the_update():
    net, (images, labels) = network(), records()
    secrets = {"norm1.weight": Secret((4,)), "norm1.bias": Secret((4,))}
    target = target_of(net, (3, 8, 8), 6, secrets)
    update = share_update(net, images, labels, withheld=secrets, local=LocalTraining(3, 0.5, 2))
    true = {name: dict(net.named_parameters())[name].detach() for name in secrets}
    found = simulated_update(target, target.complete(true), images, labels, update)
    assert set(found) == set(update.values) == set(target.parameters)
    for name, value in found.items():
        torch.testing.assert_close(value, update.values[name])


def test_soft_labels_at_a_corner_are_hard_ones():
    net, (images, labels) = network("none"), records()
    target = target_of(net, (3, 8, 8), 6)
    hard = target.gradients(target.parameters, images, labels, "eval")
    soft = target.gradients(target.parameters, images, F.one_hot(labels, 6).double(), "eval")
    torch.testing.assert_close(hard, soft)


def test_shared_statistics_are_those_of_a_training_step():
    net, (images, labels) = network(), records()
    update = share_update(net, images, labels, statistics=True)
    twin = copy.deepcopy(net).train()
    twin(images)
    for name, value in update.statistics.items():
        torch.testing.assert_close(value, twin.get_buffer(name))
    assert set(update.statistics) == {"norm1.running_mean", "norm1.running_var"}
    with pytest.raises(InputError, match="in mode train only"):
        share_update(net, images, labels, mode="eval", statistics=True)


def test_dropout_is_left_out_and_said_so():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
    target = target_of(net, (1, 2, 2), 2)
    image = torch.rand(1, 1, 2, 2)
    assert torch.equal(target.scores(target.parameters, image, "train"), net.eval()(image))
    assert "dropout" in target.notes[0] and net[1].p == 0.5


def test_instance_statistics_that_are_kept_follow_the_mode():
    net = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(4, 2))
    target, image = target_of(net, (1, 2, 2), 2), torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(target.scores(target.parameters, image, "eval"), net.eval()(image))
    torch.testing.assert_close(target.scores(target.parameters, image, "train"), net.train()(image))


def test_what_cannot_be_an_update_or_a_secret_is_refused():
    with pytest.raises(InputError, match="holds no parameter"):
        SharedUpdate({}, 1)
    with pytest.raises(InputError, match="simulating the local training"):
        SharedUpdate({"w": torch.ones(1)}, 1, "difference")
    with pytest.raises(InputError, match="2 labels are given"):
        SharedUpdate({"w": torch.ones(1)}, 1, labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="at least one record"):
        SharedUpdate({"w": torch.ones(1)}, 0)
    with pytest.raises(InputError, match="no parameter in the model"):
        target_of(network(), (3, 8, 8), 6, {"norm9.weight": Secret((4,))})
    target = target_of(network(), (3, 8, 8), 6)
    images, labels = records()
    with pytest.raises(InputError, match="does not have"):
        simulated_update(target, target.parameters, images, labels, SharedUpdate({"other": torch.ones(1)}, 4))
    with pytest.raises(InputError, match="give one for each"):
        target.complete({"w": torch.ones(1)})
