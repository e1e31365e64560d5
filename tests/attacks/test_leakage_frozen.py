"""Parts of a model that stay in evaluation mode while the rest is trained; and what a search says of its end."""

import pytest
import torch
from torch import nn

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.matching import relative_error
from lightning_privacy.attacks.leakage.statistics import statistics_after_step
from lightning_privacy.attacks.leakage.target import target_of


class Half(nn.Module):
    """Two norms, of which the first never trains."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.head = nn.Linear(32, 3)

    def train(self, mode=True):
        super().train(mode)
        self.first.training = False
        return self

    def forward(self, images):
        return self.head(self.second(self.first(images)).flatten(1))


def test_gradients_are_those_of_the_modules_own_train_mode():
    torch.manual_seed(0)
    net = Half().train()
    net.first.running_mean.fill_(0.3)
    images, labels = torch.rand(3, 2, 4, 4), torch.tensor([0, 2, 1])
    target = target_of(net, (2, 4, 4), 3)
    found = target.gradients(target.parameters, images, labels, "train")
    nn.functional.cross_entropy(net(images), labels).backward()
    for name, value in net.named_parameters():
        assert torch.allclose(found[name], value.grad, atol=1e-6), name


def test_statistics_of_a_part_in_evaluation_mode_do_not_change():
    torch.manual_seed(0)
    net = Half().train()
    target, images = target_of(net, (2, 4, 4), 3), torch.rand(3, 2, 4, 4)
    found = statistics_after_step(target, target.parameters, images)
    net(images)
    assert sorted(found) == ["second.running_mean", "second.running_var"]
    assert torch.allclose(found["second.running_var"], net.second.running_var, atol=1e-6)


def test_a_search_says_what_its_end_causes_before_clipping():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    target, update = target_of(net, (1, 4, 4), 3), share_update(net, torch.rand(1, 1, 4, 4), torch.tensor([1]))
    found = DeepLeakage(evaluations=8, restarts=2, spread=3.0).reconstruct(target, update, 0)
    shared = {name: value.double() for name, value in update.values.items()}
    assert float(relative_error(found.caused, shared, tuple(shared))) == pytest.approx(found.matching_loss)
