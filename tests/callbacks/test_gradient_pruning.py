"""Pruned gradients: how many survive and which, when pruning happens, and the attack that it does not stop."""

from dataclasses import replace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.callbacks.gradient_pruning.attack import MaskedMatching, SurvivorMatching
from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
from lightning_privacy.callbacks.gradient_pruning.functional import energy_kept, kept_count, largest, prune
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import split_images, tiny_classifier


@settings(max_examples=50)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.floats(0, 0.999))
def test_exactly_the_count_survives_and_no_victim_is_larger_than_a_survivor(numbers, share):
    g = torch.tensor(numbers, dtype=torch.float32) + 0.5  # many ties, no zeros
    pruned = prune({"w": g}, share)["w"]
    assert int((pruned != 0).sum()) == kept_count(len(g), share)
    assert torch.equal(pruned[pruned != 0], g[pruned != 0])
    if (pruned == 0).any():
        assert g[pruned == 0].abs().max() <= pruned[pruned != 0].abs().min()


def test_it_is_numpys_partition_where_there_are_no_ties():
    g = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    cut = np.partition(g.abs().numpy().ravel(), 53)[53]  # floor(.7 * 77) = 53 entries fall below it
    assert torch.equal(prune({"w": g}, 0.7)["w"], torch.where(g.abs() >= cut, g, torch.zeros(())))


def test_global_scope_is_one_long_tensor():
    g = torch.Generator().manual_seed(1)
    update = {"a": 10 * torch.randn(4, 5, generator=g), "b": torch.randn(30, generator=g), "c": torch.randn(1)}
    both = torch.cat([v.flatten() for v in update.values()])
    together = prune({"x": both}, 0.8)["x"].split([20, 30, 1])
    for found, truth in zip(prune(update, 0.8, "global").values(), together, strict=True):
        assert torch.equal(found.flatten(), truth)
    assert not torch.equal(prune(update, 0.8)["b"], prune(update, 0.8, "global")["b"])


def test_ties_go_to_the_first_so_that_ranks_agree():
    assert largest(torch.ones(5), 2).tolist() == [True, True, False, False, False]


def test_a_diverged_gradient_stays_visible():
    pruned = prune({"w": torch.tensor([float("nan"), 1.0, 2.0, float("inf")])}, 0.5)["w"]
    assert pruned[0].isnan() and pruned[3].isinf()


def test_types_empty_tensors_and_the_argument_itself_are_kept():
    update = {"w": torch.tensor([1.0, -3.0], dtype=torch.bfloat16), "none": torch.empty(0), "s": torch.tensor(2.0)}
    before = {k: v.clone() for k, v in update.items()}
    for scope in ("tensor", "global"):
        pruned = prune(update, 0.5, scope)
        assert {k: (v.dtype, v.shape) for k, v in pruned.items()} == {k: (v.dtype, v.shape) for k, v in before.items()}
        assert not compare(update, before)
    assert energy_kept({"w": torch.zeros(2)}, {"w": torch.zeros(2)}) == 1


class Watch(GradientPruning):
    """Keeps what reached the optimizer."""

    def transform_gradients(self, module, optimizer):
        before = {k: v.clone() for k, v in gradients_of(module, optimizer, "x").items()}
        super().transform_gradients(module, optimizer)
        after = gradients_of(module, optimizer, "x")
        assert not compare(dict(after), self.defended_update(before, torch.Generator()))
        self.seen = [*getattr(self, "seen", []), {k: v.clone() for k, v in after.items()}]


class Used(L.Callback):
    """Keeps the gradients that the optimizer used."""

    def on_train_start(self, trainer, pl_module):
        def keep(optimizer, args, kwargs):
            self.gradients = {k: v.clone() for k, v in gradients_of(pl_module, optimizer, "x").items()}

        trainer.optimizers[0].register_step_post_hook(keep)


def test_training_and_sharing_prune_alike_also_under_accumulation_and_the_trainers_clipping_comes_after(tmp_path):
    alone, accumulated, clipped = Watch(0.8), Watch(0.8), Watch(0.8)
    fit(tmp_path, tiny_classifier(), split_images(8), [alone], limit_train_batches=1)
    fit(tmp_path, tiny_classifier(), split_images(4), [accumulated], accumulate_grad_batches=2, limit_train_batches=2)
    used, options = Used(), {"limit_train_batches": 1, "gradient_clip_val": 1e-3}
    fit(tmp_path, tiny_classifier(), split_images(8), [clipped, used], **options)
    one, two = alone.seen[0], accumulated.seen[0]
    assert len(accumulated.seen) == 1
    for name in one:  # the gradient of the accumulated batch is pruned, not the sum of two pruned ones
        assert torch.equal(one[name] != 0, two[name] != 0) and torch.allclose(one[name], two[name], atol=1e-6)
    assert not compare(clipped.seen, alone.seen)
    length = torch.cat([g.flatten() for g in used.gradients.values()]).norm().item()
    assert length == pytest.approx(1e-3, rel=1e-3)
    assert all(torch.equal(used.gradients[k] != 0, one[k] != 0) for k in one)


def test_the_share_of_energy_is_logged(tmp_path):
    defence = Watch(0.9)
    metrics = fit(
        tmp_path, tiny_classifier(), split_images(), [defence], limit_train_batches=1
    ).trainer.callback_metrics
    assert 0.1 < metrics["defence/gradient_pruning/energy_kept"].item() < 1


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse gradient of `weight`.*sparse=False"):
        gradients_of(table, torch.optim.SGD(table.parameters(), lr=1.0), "gradient_pruning")


@pytest.mark.parametrize("wrong", [{"share": 1}, {"share": -0.1}, {"share": float("nan")}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` is"):
        GradientPruning(**wrong)


def test_the_masked_distance_is_zero_at_the_truth_and_bounded_by_the_smallest_survivor():
    truth = {"w": torch.tensor([5.0, 1.0, -3.0]), "b": torch.tensor([2.0])}
    shared = prune(truth, 0.5)
    plain, bounded = MaskedMatching(), MaskedMatching(bounded=True)
    assert plain.data_term(truth, shared) == bounded.data_term(truth, shared) == 0
    other = {**truth, "w": torch.tensor([5.0, 4.0, -3.0])}  # 4 would have survived
    assert plain.data_term(other, shared) == 0
    assert bounded.data_term(other, shared).item() == pytest.approx(1 / (25 + 9 + 4))


def test_an_attack_that_knows_of_pruning_reads_the_picture_off_a_tenth_of_the_gradient():
    torch.manual_seed(1)
    net, picture = LeakageLeNet(6, 1, 8, width=8).double(), torch.tensor(load_digits().images[1:2]).unsqueeze(1) / 16
    update = share_update(net, picture, torch.tensor([4]))
    defended = GradientPruning().defended_update(dict(update.values), torch.Generator())
    update, target = replace(update, values=defended), target_of(net, (1, 8, 8), 6)
    search = DeepLeakage(evaluations=80, restarts=1)

    def ssim(attack):
        found = attack.reconstruct(target, update, 0)
        return paired_similarity(found.pictures, picture.float())["ssim"].item()

    knowing = SurvivorMatching(search)
    assert isinstance(knowing, LeakageAttack)
    assert ssim(knowing) > 0.9
    assert ssim(search) < 0.5
