"""Searches for pictures, labels and secrets behind an update, on networks small enough to be solved in a second."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack
from lightning_privacy.attacks.leakage.inverting_gradients import InvertingGradients
from lightning_privacy.attacks.leakage.joint import JointOptimisation, dead_channels
from lightning_privacy.attacks.leakage.key_regression import KeyRegression
from lightning_privacy.attacks.leakage.known_lock import KnownLock
from lightning_privacy.attacks.leakage.partial import PartialMatching
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.target import LockView, Secret, target_of
from lightning_privacy.attacks.leakage.update import LocalTraining
from lightning_privacy.attacks.leakage.wrong_key import WrongKey
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet

CLASSES = 6


def picture(i=0, n=1):
    return torch.tensor(load_digits().images[i : i + n]).unsqueeze(1) / 16


def network(norm="none", seed=0):
    torch.manual_seed(seed)
    return LeakageLeNet(CLASSES, 1, 8, norm=norm, width=8).double()


def ssim(found, truth):
    return float(paired_similarity(found.pictures, truth.float())["ssim"].mean())


def plain(net):
    return target_of(net, (1, 8, 8), CLASSES)


def locked(seed=0, width=8, relu=False):
    """A network whose first norm has a scale and a shift that a key of 32 numbers makes."""
    net = network("batch", seed)
    g = torch.Generator().manual_seed(seed + 50)
    weights = torch.randn(2, width, 32, generator=g).double() / 8

    def derive(key):
        scale, shift = weights[0] @ key, weights[1] @ key
        if relu:
            return {"norm1.weight": scale.relu(), "norm1.bias": shift.relu()}
        return {"norm1.weight": nn.functional.softplus(scale + 0.54), "norm1.bias": shift}

    def draw(g):
        return torch.randint(0, 2, (32,), generator=g).double() * 2 - 1

    lock = LockView(derive, draw)
    true = derive(draw(g))
    with torch.no_grad():
        net.norm1.weight.copy_(true["norm1.weight"])
        net.norm1.bias.copy_(true["norm1.bias"])
    hidden = {"norm1.weight": Secret((width,), True, "conv1.weight"), "norm1.bias": Secret((width,), relu)}
    target = target_of(net, (1, 8, 8), CLASSES, hidden, draw_secrets=lambda g: derive(draw(g)), lock=lock)
    return net, target, true


def error(found, true):
    return max(float((found.secrets[k] - true[k]).norm() / true[k].norm()) for k in true)


@pytest.mark.parametrize("attack", [DeepLeakage(evaluations=80, restarts=2), InvertingGradients(steps=150, restarts=2)])
def test_an_undefended_network_gives_its_picture_and_label_away(attack):
    net, image = network(), picture()
    found = attack.reconstruct(plain(net), share_update(net, image, torch.tensor([4])), 0)
    assert ssim(found, image) > 0.9
    assert found.labels.tolist() == [4]
    assert found.pictures.dtype == torch.float32 and float(found.pictures.min()) >= 0


def test_the_search_is_a_function_of_its_seed_and_leaves_the_model_alone():
    net, image = network(), picture()
    target, update = plain(net), share_update(net, image, torch.tensor([4]))
    before = copy.deepcopy(net.state_dict())
    attack = DeepLeakage(evaluations=40, restarts=2)
    one, two, other = (attack.reconstruct(target, update, seed) for seed in (0, 0, 1))
    assert torch.equal(one.pictures, two.pictures) and not torch.equal(one.pictures, other.pictures)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in target.parameters.items())


def test_an_audit_may_call_it_without_gradients_and_no_random_state_is_used():
    net, image = network(), picture()
    target, update = plain(net), share_update(net, image, torch.tensor([4]))
    attack, state = DeepLeakage(evaluations=20, restarts=2), torch.get_rng_state()
    expected = attack.reconstruct(target, update, 0)
    with torch.no_grad():
        assert torch.equal(attack.reconstruct(target, update, 0).pictures, expected.pictures)
    with torch.inference_mode():
        assert torch.equal(attack.reconstruct(target, update, 0).pictures, expected.pictures)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_restart_with_the_lowest_matching_loss_is_returned():
    net, image = network(), picture()
    found = DeepLeakage(evaluations=30, restarts=4).reconstruct(
        plain(net), share_update(net, image, torch.tensor([1])), 0
    )
    assert len(set(found.restarts)) == 4
    assert found.matching_loss == min(found.restarts)


def test_a_search_that_was_stopped_says_that_it_has_not_converged():
    net, image = network(), picture()
    found = DeepLeakage(evaluations=8, restarts=1).reconstruct(
        plain(net), share_update(net, image, torch.tensor([1])), 0
    )
    assert not found.converged
    losses = [loss for _, loss in found.history]
    assert losses == sorted(losses, reverse=True) and found.evaluations == 8


def test_restarts_side_by_side_find_what_each_finds_alone():
    net, image = network(), picture()
    target, update = plain(net), share_update(net, image, torch.tensor([1]))
    together = DeepLeakage(evaluations=30, restarts=3).reconstruct(target, update, 0)
    alone = DeepLeakage(evaluations=30, restarts=1).reconstruct(target, update, 0)
    assert together.restarts[0] == pytest.approx(alone.restarts[0], rel=1e-3)


def test_a_layer_that_cannot_be_batched_is_searched_one_by_one():
    class Odd(nn.Module):
        def forward(self, x):
            return x * (1.0 if float(x.detach().sum()) > -1e9 else 0.0)

    net = nn.Sequential(Odd(), nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, CLASSES)).double()
    image = picture()
    found = DeepLeakage(evaluations=10, restarts=2).reconstruct(
        plain(net), share_update(net, image, torch.tensor([1])), 0
    )
    assert "one after another" in found.note


def test_soft_labels_are_searched_for_where_the_head_is_withheld():
    net, image = network(), picture()
    hidden = {name: value for name, value in net.named_parameters() if name.startswith("head")}
    update = share_update(net, image, torch.tensor([3]), withheld=hidden)
    found = DeepLeakage(evaluations=80, restarts=2).reconstruct(plain(net), update, 0)
    assert found.labels.tolist() == [3]


def test_a_batch_is_found_up_to_its_order():
    net, images = network(), picture(0, 2)
    update = share_update(net, images, torch.tensor([0, 1]))
    found = DeepLeakage(evaluations=100, restarts=1).reconstruct(plain(net), update, 0)
    assert ssim(found, images) > 0.8  # the labels, in ascending order, fix the order here


def test_local_steps_are_inverted_by_simulating_them():
    net, image = network(), picture(0, 2)
    local = LocalTraining(steps=2, learning_rate=0.1, batch_size=1)
    update = share_update(net, image, torch.tensor([0, 1]), local=local, tell="labels")
    found = DeepLeakage(evaluations=80, restarts=1).reconstruct(plain(net), update, 0)
    assert ssim(found, image) > 0.8


def test_shared_statistics_give_back_the_brightness_that_normalisation_hides():
    net, image = network("batch"), picture()
    attack, psnr = DeepLeakage(evaluations=150, restarts=1), []
    for statistics in (False, True):
        update = share_update(net, image, torch.tensor([2]), statistics=statistics)
        found = attack.reconstruct(plain(net), update, 0)
        psnr.append(float(paired_similarity(found.pictures, image.float())["psnr"]))
    assert psnr[1] > psnr[0] + 5


def test_one_local_step_is_searched_like_a_gradient():
    net, image = network(), picture()
    target, local = plain(net), LocalTraining(1, 0.1, 1)
    attack = DeepLeakage(evaluations=20, restarts=1)
    found = [attack.reconstruct(target, share_update(net, image, torch.tensor([0]), local=x), 0) for x in (None, local)]
    torch.testing.assert_close(found[0].pictures, found[1].pictures, atol=1e-4, rtol=0)


def test_a_locked_network_is_refused_by_an_attack_that_knows_no_secrets():
    net, target, _ = locked()
    update = share_update(net, picture(), torch.tensor([1]), withheld=target.secrets)
    with pytest.raises(InputError, match="keeps .*to itself"):
        DeepLeakage(evaluations=5).reconstruct(target, update, 0)


@pytest.mark.parametrize("relu", [False, True])
def test_joint_optimisation_finds_the_secrets_that_a_wrong_key_misses(relu):
    net, target, true = locked(relu=relu)
    image = picture()
    update = share_update(net, image, torch.tensor([1]), withheld=target.secrets)
    attack = DeepLeakage(evaluations=120, restarts=1)
    wrong, joint = (x(attack).reconstruct(target, update, 0) for x in (WrongKey, JointOptimisation))
    oracle = attack.reconstruct(target.with_secrets(true), update, 0)
    assert error(joint, true) < 0.1 < 0.3 < error(wrong, true)
    assert joint.matching_loss < 0.01 * wrong.matching_loss
    assert ssim(wrong, image) + 0.2 < ssim(joint, image) and ssim(oracle, image) - 0.2 < ssim(joint, image)
    assert not wrong.converged and joint.matching_loss < 1e-3 * joint.start_loss


def test_dead_channels_are_read_off_exactly():
    net, target, true = locked(relu=True)
    update = share_update(net, picture(), torch.tensor([1]), withheld=target.secrets)
    dead = dead_channels(target, update)
    assert torch.equal(dead["norm1.weight"], true["norm1.weight"] == 0) and dead["norm1.weight"].any()
    found = JointOptimisation(DeepLeakage(evaluations=10)).reconstruct(target, update, 0)
    assert bool((found.secrets["norm1.weight"][dead["norm1.weight"]] == 0).all())


def test_the_key_is_regressed_behind_a_known_lock():
    net, target, true = locked()
    update = share_update(net, picture(), torch.tensor([1]), withheld=target.secrets)
    attack = DeepLeakage(evaluations=80, restarts=1)
    regressed = KeyRegression(attack).reconstruct(target, update, 0)
    assert error(regressed, true) < 0.1
    known = KnownLock(attack).reconstruct(target, update, 0)
    assert known.matching_loss <= regressed.matching_loss


def test_rounds_that_share_secrets_are_searched_together():
    net, target, true = locked()
    rounds, images = [], picture(0, 2)
    for i in range(2):
        update = share_update(net, images[i : i + 1], torch.tensor([i]), withheld=target.secrets)
        rounds.append(Round(target, update))
    found = JointOptimisation(DeepLeakage(evaluations=100, restarts=1)).reconstruct_rounds(rounds, 0)
    assert torch.equal(found[0].secrets["norm1.bias"], found[1].secrets["norm1.bias"])
    assert error(found[0], true) < 0.1
    assert [x.labels.tolist() for x in found] == [[0], [1]]
    assert min(ssim(x, images[i : i + 1]) for i, x in enumerate(found)) > 0.5


def test_partial_matching_is_not_misled_by_a_layer_that_was_perturbed():
    net, image = network(), picture()
    update = share_update(net, image, torch.tensor([1]))
    for name in ("conv1.weight", "conv1.bias"):
        update.values[name].add_(torch.randn_like(update.values[name]) * update.values[name].norm())
    attack = DeepLeakage(evaluations=80, restarts=1)
    misled = attack.reconstruct(plain(net), update, 0)
    found = PartialMatching(("conv2", "conv3", "head"), attack).reconstruct(plain(net), update, 0)
    assert found.matching_loss < 1e-3 * misled.matching_loss
    assert ssim(found, image) > ssim(misled, image)


def test_what_an_attack_needs_and_lacks_is_named():
    net, target, true = locked()
    update = share_update(net, picture(), torch.tensor([1]), withheld=target.secrets)
    bare = target_of(net, (1, 8, 8), CLASSES, target.secrets)
    with pytest.raises(InputError, match="draw_secrets"):
        WrongKey().reconstruct(bare, update, 0)
    with pytest.raises(InputError, match="no wrong key"):
        WrongKey().reconstruct(target.with_secrets(true), update, 0)
    with pytest.raises(InputError, match="lock"):
        KeyRegression().reconstruct(bare, update, 0)
    with pytest.raises(InputError, match="as it was sent out"):
        KnownLock().reconstruct(bare, update, 0)
    with pytest.raises(InputError, match="belongs to"):
        PartialMatching(("tail",)).reconstruct(target, update, 0)
    with pytest.raises(InputError, match="no update"):
        JointOptimisation().reconstruct_rounds([], 0)


def test_a_lock_of_unknown_form_is_searched_from_scale_one():
    net, target, true = locked()
    update = share_update(net, picture(), torch.tensor([1]), withheld=target.secrets)
    bare = target_of(net, (1, 8, 8), CLASSES, target.secrets)
    assert error(JointOptimisation(DeepLeakage(120, 1)).reconstruct(bare, update, 0), true) < 0.1


def test_attacks_keep_to_the_protocol():
    attacks = [DeepLeakage(), InvertingGradients(), WrongKey(), JointOptimisation(), KeyRegression(), KnownLock()]
    assert all(isinstance(x, LeakageAttack) for x in [*attacks, PartialMatching()])
    assert all(isinstance(x, SearchAttack) for x in attacks[:2])
