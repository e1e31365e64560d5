"""An order of pixels is read out of the first layer that took it up, and out of nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.lock.block_reading import block_weights
from lightning_privacy.attacks.lock.plane import plane_layout
from lightning_privacy.attacks.lock.target import LockedModel, OwnPictures, accuracy_of
from lightning_privacy.attacks.lock.weight_layout import WeightLayout

SIDE, CELLS = 16, 3
CLASSES = CELLS * CELLS - 1


def bumps(n, seed):
    """Bright spots, whose class is the cell of a 3 by 3 grid that they lie in; the last corner is left out.

    Without that corner a picture is unlike its mirror images and rotations.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=g)
    cell = SIDE / CELLS
    middle = torch.stack([labels // CELLS, labels % CELLS], 1) * cell + cell * (
        0.2 + 0.6 * torch.rand(n, 2, generator=g)
    )
    at = torch.arange(SIDE) + 0.5
    down, across = ((at - middle[:, i : i + 1]).square() for i in (0, 1))
    return torch.exp(-(down[:, :, None] + across[:, None]) / 8)[:, None], labels


ORDER = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(4))


def shuffled(x):
    return x.flatten(1)[:, ORDER].view_as(x)


class Blocks(nn.Module):
    """Reads a picture as one block."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Conv2d(1, 24, SIDE, stride=SIDE), nn.Linear(24, CLASSES)

    def forward(self, x):
        return self.head(F.gelu(self.blocks(x).flatten(1)))


def model_of(net):
    return LockedModel(net, lambda: copy.deepcopy(net).requires_grad_(True), CLASSES)


@pytest.fixture(scope="module")
def stolen():
    torch.manual_seed(0)
    net, (images, labels) = Blocks(), bumps(400, 0)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        F.cross_entropy(net(shuffled(images)), labels).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    return model_of(net)


def own(n):
    return OwnPictures(*bumps(n, 1), None, *bumps(40, 2))


def test_labels_and_weights_alone_open_a_keyed_order(stolen):
    scored = bumps(200, 3)
    assert accuracy_of(stolen.scores, shuffled(scored[0]), scored[1]) > 0.95
    assert accuracy_of(stolen.scores, *scored) < 0.4
    found = WeightLayout(steps=60, tune_rates=()).unlock(stolen, own(32), 0)
    assert accuracy_of(found.classify, *scored) > 0.7
    assert found.cost.labels == 32 and found.cost.pairs == 0 and found.chosen.startswith("blocks of 16")
    torch.testing.assert_close(found.classify(scored[0]), stolen.scores(found.edit(scored[0])))


def test_the_weights_behind_the_layout_may_be_tuned_and_the_stolen_ones_stay(stolen):
    before = {name: value.clone() for name, value in stolen.copy().state_dict().items()}
    plain = WeightLayout(steps=30, tune_rates=()).unlock(stolen, own(32), 0)
    tuned = WeightLayout(steps=30, tune_rates=[1e-3], tune_steps=40).unlock(stolen, own(32), 0)
    assert tuned.own_accuracy >= plain.own_accuracy and tuned.cost.steps == plain.cost.steps + 40
    assert all(torch.equal(value, before[name]) for name, value in stolen.copy().state_dict().items())


def test_neighbours_lie_together_in_the_layout(stolen):
    weights, side = block_weights(stolen.copy(), bumps(1, 0)[0])
    assert side == SIDE and weights.shape == (SIDE * SIDE, 24)
    places, placed = plane_layout(weights, 3, 0)
    true = torch.stack([ORDER // SIDE, ORDER % SIDE], 1).double()
    apart, found = torch.pdist(true), torch.pdist(places.double())
    assert placed.double().mean() > 0.9
    assert found[apart < 1.5].median() < 0.5 * found[apart > 6].median()


def test_a_first_layer_that_was_never_trained_gives_nothing_away():
    torch.manual_seed(1)
    net = Blocks().requires_grad_(False)
    found = WeightLayout(steps=5, starts=1, waves=[0]).unlock(model_of(net), own(16), 0)
    assert accuracy_of(found.classify, *bumps(200, 3)) < 0.45


def test_a_first_layer_with_small_kernels_is_left_alone():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, CLASSES)
    ).requires_grad_(False)
    found = WeightLayout().unlock(model_of(net), own(16), 0)
    assert "reads no blocks" in found.chosen and found.edit is None
    x = bumps(3, 5)[0]
    torch.testing.assert_close(found.classify(x), net(x))
