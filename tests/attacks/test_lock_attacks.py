"""Attacks on locked models succeed where they must, fail where they must, and choose without looking at what is scored."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.lock.distillation import Distillation
from lightning_privacy.attacks.lock.finetuning import FineTune, HeadTune, Scratch
from lightning_privacy.attacks.lock.guessing import GuessedEdit, NoKey, PromptDictionary
from lightning_privacy.attacks.lock.residual import MeanResidual
from lightning_privacy.attacks.lock.score_map import ScoreMap
from lightning_privacy.attacks.lock.target import LockAttack, LockedModel, OwnPictures, accuracy_of
from lightning_privacy.attacks.lock.unlocker import LabelUnlocker, PairUnlocker
from lightning_privacy.attacks.lock.value_map import BlockMap, ValueOrder
from lightning_privacy.editors.blocks import from_blocks, to_blocks
from lightning_privacy.errors import InputError

CLASSES, SIDE = 4, 8


def pictures(n, seed):
    """Pictures whose class is the quarter that is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    images = 0.3 + 0.1 * torch.rand(n, 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.25
    return images, labels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(SIDE * SIDE, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.hidden(x.flatten(1) - 0.5)))


def train(images, labels, steps=150):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def locked(edit, wrong=None):
    """A model trained on edited pictures, and on raw ones with wrong classes if asked."""
    images, labels = pictures(200, 0)
    shown, told = edit(images), labels
    if wrong is not None:
        shown, told = torch.cat([shown, images]), torch.cat([labels, wrong(labels)])
    net = train(shown, told).requires_grad_(False)
    return net, LockedModel(net, lambda: copy.deepcopy(net).requires_grad_(True), CLASSES)


def own(edit=None, n=60):
    images, labels = pictures(n, 1)
    val = pictures(30, 2)
    return OwnPictures(images, labels, None if edit is None else edit(images), *val)


def reached(found):
    return accuracy_of(found.classify, *pictures(100, 3))


PATTERN = 0.6 * torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(9)) - 0.3
ORDER = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(4))


def shifted(x):
    return (x + PATTERN).clamp(0, 1)


def inverted(x):
    return 1 - x


def shuffled(x):
    return x.flatten(1)[:, ORDER].view_as(x)


def next_class(labels):
    return (labels + 1) % CLASSES


@pytest.mark.parametrize(
    "attack",
    [NoKey(), MeanResidual(), ValueOrder(), BlockMap(), ScoreMap(), PairUnlocker(2), FineTune(2), HeadTune(2)],
)
def test_every_attack_is_one_and_leaves_the_model_as_it_was(attack):
    net, model = locked(shifted)
    before = copy.deepcopy(net.state_dict())
    assert isinstance(attack, LockAttack) and attack.access
    found = attack.unlock(model, own(shifted), 0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert found.classify(pictures(5, 3)[0]).shape == (5, CLASSES)


def test_a_pattern_that_all_edits_share_is_undone_by_their_mean():
    _, model = locked(shifted, next_class)
    assert reached(NoKey().unlock(model, own(), 0)) < 0.1
    found = MeanResidual().unlock(model, own(shifted), 0)
    assert reached(found) > 0.9 and found.cost.pairs == 60
    with pytest.raises(InputError, match="pairs"):
        MeanResidual().unlock(model, own(), 0)


@pytest.mark.parametrize("attack", [PairUnlocker(150), LabelUnlocker(400)])
def test_a_colour_transform_is_learned(attack):
    _, model = locked(inverted, next_class)
    assert reached(NoKey().unlock(model, own(), 0)) < 0.1
    assert reached(attack.unlock(model, own(inverted), 0)) > 0.9


def test_a_keyed_order_of_pixels_is_not_learned_by_convolutions_nor_by_the_mean():
    _, model = locked(shuffled, next_class)
    for attack in (MeanResidual(), PairUnlocker(100)):
        assert reached(attack.unlock(model, own(shuffled), 0)) < 0.5


def half_negative(x):
    return torch.where(ORDER.view(1, 1, SIDE, SIDE) % 2 == 0, 1 - shuffled(x), shuffled(x))


@pytest.mark.parametrize("attack", [ValueOrder(), BlockMap()])
@pytest.mark.parametrize("edit", [shuffled, half_negative])
def test_a_keyed_order_is_solved_from_pairs(attack, edit):
    _, model = locked(edit, next_class)
    found = attack.unlock(model, own(edit), 0)
    assert reached(found) > 0.8 and found.cost.pairs == 60 and "blocks of 8" in found.chosen
    if attack == ValueOrder():
        x = pictures(5, 7)[0]
        assert torch.allclose(found.edit(x), edit(x), atol=1e-6)
    with pytest.raises(InputError, match="needs pairs"):
        attack.unlock(model, own(), 0)
    with pytest.raises(InputError, match="None of the blocks"):
        dataclasses.replace(attack, blocks=(3,)).unlock(model, own(edit), 0)


def test_an_order_within_blocks_is_learned_from_one_picture():
    order = torch.randperm(4, generator=torch.Generator().manual_seed(4))

    def edit(x):
        return from_blocks(to_blocks(x, 2)[..., order], (SIDE, SIDE), 2)

    _, model = locked(edit)
    found = ValueOrder(blocks=(2,)).unlock(model, own(edit).first(1), 0)
    x = pictures(5, 7)[0]
    assert torch.allclose(found.edit(x), edit(x), atol=1e-6)


def test_wrong_labels_are_a_function_of_the_right_ones():
    _, model = locked(shuffled, next_class)
    assert reached(ScoreMap().unlock(model, own(), 0)) > 0.9


def test_a_dictionary_with_the_key_finds_it_and_one_without_does_not():
    _, model = locked(inverted, next_class)
    wrong = {f"wrong {i}": lambda x, i=i: (x + i / 30).clamp(0, 1) for i in range(6)}
    assert reached(PromptDictionary({**wrong, "right": inverted}).unlock(model, own(), 0)) > 0.9
    found = PromptDictionary(wrong).unlock(model, own(), 0)
    assert reached(found) < 0.5 and "wrong" not in found.chosen
    assert reached(GuessedEdit("wrong_seed", lambda x: x).unlock(model, own(), 0)) < 0.1
    with pytest.raises(InputError, match="at least one"):
        PromptDictionary({})


def test_stolen_weights_help_beside_training_from_scratch():
    _, model = locked(lambda x: x * 0.8)
    few = own().first(2)
    assert len(few.images) == 2 and len(few.val_images) == 30
    tuned, scratch = FineTune(60).unlock(model, few, 0), Scratch(60).unlock(model, few, 0)
    assert reached(tuned) > reached(scratch) + 0.1
    assert tuned.cost.labels == 2 and "learning rate" in tuned.chosen


def test_the_head_alone_is_trained():
    net, model = locked(shifted, next_class)
    found = HeadTune(30, (1e-2,)).unlock(model, own(), 0)
    assert torch.equal(found.classify.hidden.weight, net.hidden.weight)
    assert not torch.equal(found.classify.head.weight, net.head.weight)


def test_a_student_learns_what_the_best_attack_reaches():
    _, model = locked(shifted, next_class)
    found = Distillation(steps=80).unlock(model, own(shifted), 0)
    assert found.chosen == "taught by mean_residual" and reached(found) > 0.9


@pytest.mark.parametrize("attack", [PairUnlocker(20), FineTune(20), ScoreMap()])
def test_the_same_seed_gives_the_same_attack(attack):
    _, model = locked(inverted)
    one, two = (attack.unlock(model, own(inverted), 5) for _ in range(2))
    x = pictures(7, 8)[0]
    assert torch.equal(one.classify(x), two.classify(x)) and one.chosen == two.chosen


def test_choices_follow_the_pictures_for_choices():
    _, model = locked(shifted, next_class)
    mine = own(shifted)
    honest = MeanResidual().unlock(model, mine, 0)
    misled = MeanResidual().unlock(model, dataclasses.replace(mine, val_labels=next_class(mine.val_labels)), 0)
    assert honest.own_accuracy > misled.own_accuracy
