"""Labels and features that a head's gradient gives away without any search."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.leakage.analytic import (
    FirstLayerRecovery,
    class_features,
    head_features,
    linear_input,
)
from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.imprint import Imprint, ImprintedNetwork, brightness_cuts
from lightning_privacy.attacks.leakage.labels import infer_labels, label_counts, present_classes, single_label
from lightning_privacy.attacks.leakage.target import Secret, target_of
from lightning_privacy.attacks.leakage.update import LocalTraining, SharedUpdate
from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet


def locked(seed, classes=20):
    torch.manual_seed(seed)
    net = LeakageLeNet(classes, 1, 8, norm="batch", width=4).double()
    nn.init.uniform_(net.norm1.weight, 0.2, 1.5)
    nn.init.uniform_(net.norm1.bias, -0.5, 0.5)
    hidden = {"norm1.weight": Secret((4,), True, "conv1.weight"), "norm1.bias": Secret((4,))}
    return net, target_of(net, (1, 8, 8), classes, hidden)


@pytest.mark.parametrize("bias", [True, False])
def test_the_label_of_one_record_is_exact_behind_a_lock(bias):
    right = 0
    for seed in range(100):
        net, target = locked(seed)
        label = torch.randint(20, (1,))
        update = share_update(net, torch.rand(1, 1, 8, 8).double(), label, withheld=target.secrets)
        if not bias:
            values = {k: v for k, v in update.values.items() if k != "head.bias"}
            update = SharedUpdate(values, 1)
        right += int(infer_labels(target, update) == label)
    assert right == 100


def test_features_before_the_head_are_exact_behind_a_lock():
    net, target = locked(3)
    image = torch.rand(1, 1, 8, 8).double()
    update = share_update(net, image, torch.tensor([5]), withheld=target.secrets)
    seen = {}
    net.head.register_forward_pre_hook(lambda module, inputs: seen.update(features=inputs[0]))
    net(image)
    torch.testing.assert_close(head_features(target, update), seen["features"].detach(), atol=1e-12, rtol=1e-12)


def test_the_only_label_of_a_local_step_is_read_off_a_weight_difference():
    net, target = locked(4)
    local = LocalTraining(steps=1, learning_rate=0.1, batch_size=1)
    update = share_update(net, torch.rand(1, 1, 8, 8).double(), torch.tensor([7]), local=local)
    assert infer_labels(target, update).tolist() == [7]


def test_label_counts_are_exact_where_the_probabilities_are():
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        n, classes = 16, 10
        probabilities = torch.randn(n, classes, generator=g).softmax(1)
        labels = torch.randint(classes, (n,), generator=g)
        bias = (probabilities - F.one_hot(labels, classes)).mean(0)
        assert label_counts(bias, n, probabilities.mean(0)).tolist() == labels.bincount(minlength=classes).tolist()


def test_label_counts_sum_to_the_records_though_the_gradient_was_perturbed():
    bias = torch.tensor([-0.1, -0.2, -0.3, -0.4])
    assert label_counts(bias, 2, torch.full((4,), 0.25)).tolist() == [0, 0, 1, 1]
    assert int(label_counts(torch.full((4,), 0.5), 3, torch.full((4,), 0.25)).sum()) == 3


def test_labels_of_a_batch_on_an_untrained_model_are_mostly_right():
    hits = 0
    for seed in range(10):
        torch.manual_seed(seed)
        net = LeakageLeNet(10, 1, 8, width=4)
        labels = torch.randint(10, (8,)).sort().values
        update = share_update(net, torch.rand(8, 1, 8, 8), labels)
        found = infer_labels(target_of(net, (1, 8, 8), 10), update)
        hits += int(torch.minimum(found.bincount(minlength=10), labels.bincount(minlength=10)).sum())
    assert hits >= 76  # of 80


def test_classes_without_repeats_are_found_by_the_sign_of_the_weights():
    features, labels = torch.rand(4, 6) + 0.1, torch.tensor([1, 3, 4, 8])
    slopes = torch.full((4, 10), 0.1)
    slopes[range(4), labels] = -0.9
    assert present_classes(slopes.T @ features / 4, 4).tolist() == labels.tolist()


def test_no_label_without_a_head():
    net, target = locked(0)
    update = share_update(
        net, torch.rand(1, 1, 8, 8).double(), torch.tensor([2]), withheld=["head.weight", "head.bias"]
    )
    assert infer_labels(target, update) is None
    with pytest.raises(InputError, match="Neither"):
        single_label()


def test_features_of_two_records_of_one_class_are_refused():
    with pytest.raises(InputError, match="share a row"):
        class_features(torch.ones(3, 4), torch.ones(3), torch.tensor([1, 1]))
    with pytest.raises(InputError, match="no gradient"):
        linear_input(torch.zeros(3, 4), torch.zeros(3))


def test_a_fully_connected_first_layer_gives_the_picture_away():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5)).double()
    image = torch.rand(1, 1, 8, 8).double()
    found = FirstLayerRecovery().reconstruct(
        target_of(net, (1, 8, 8), 5), share_update(net, image, torch.tensor([4])), 0
    )
    torch.testing.assert_close(found.pictures, image.float())
    assert found.labels.tolist() == [4] and found.converged


def test_a_first_layer_with_units_of_one_record_gives_a_small_batch_away():
    # Each unit answers to one pixel: a record alone lights it.
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(64))
        net[1].bias.fill_(-0.8)
    images = torch.rand(3, 1, 8, 8).double() * 0.7
    images.view(3, 64)[0, :10], images.view(3, 64)[1, 10:20], images.view(3, 64)[2, 20:30] = 1, 0.9, 0.95
    found = FirstLayerRecovery().reconstruct(
        target_of(net, (1, 8, 8), 5), share_update(net, images, torch.tensor([4, 1, 2])), 0
    )
    distance = torch.cdist(found.pictures.flatten(1), images.float().flatten(1))
    assert found.converged and sorted(distance.argmin(1).tolist()) == [0, 1, 2] and float(distance.amin(1).max()) < 1e-5


def test_a_first_layer_of_another_size_is_refused():
    net, target = locked(0)
    with pytest.raises(InputError, match="sees the picture"):
        FirstLayerRecovery().reconstruct(
            target, share_update(net, torch.rand(1, 1, 8, 8).double(), torch.tensor([0])), 0
        )


def test_a_malicious_server_reads_every_record_of_its_own_bin_exactly():
    torch.manual_seed(0)
    images = torch.rand(6, 1, 8, 8).double() * torch.linspace(0.2, 1, 6).reshape(-1, 1, 1, 1).double()
    own = torch.rand(500, 1, 8, 8).double() * torch.linspace(0.1, 1.1, 500).clamp(max=1).reshape(-1, 1, 1, 1).double()
    net, target = locked(1)
    net = ImprintedNetwork(net, (1, 8, 8), brightness_cuts(own, 64)).double()
    update = share_update(net, images, torch.arange(6), mode="eval")
    found = Imprint().reconstruct(target, update, 0)
    order = torch.cdist(found.pictures.flatten(1), images.float().flatten(1)).argmin(0)
    torch.testing.assert_close(found.pictures[order], images.float(), atol=1e-6, rtol=0)
    assert found.converged


def test_records_that_share_a_bin_are_not_claimed():
    net = ImprintedNetwork(LeakageLeNet(5, 1, 8, width=4), (1, 8, 8), torch.tensor([-1.0, 0.9])).double()
    update = share_update(net, torch.rand(2, 1, 8, 8).double() * 0.5, torch.tensor([0, 1]))
    found = Imprint().reconstruct(target_of(net, (1, 8, 8), 5), update, 0)
    assert not found.converged and "share one" in found.note


def test_an_imprint_needs_its_layer_and_rising_cuts():
    net, target = locked(1)
    update = share_update(net, torch.rand(1, 1, 8, 8).double(), torch.tensor([0]))
    with pytest.raises(InputError, match="was not shared"):
        Imprint().reconstruct(target, update, 0)
    with pytest.raises(InputError, match="rise strictly"):
        ImprintedNetwork(net, (1, 8, 8), torch.tensor([0.5, 0.5]))
