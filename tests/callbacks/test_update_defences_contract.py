"""The four defences of shared updates against the contract of all defences, and against each other."""

from itertools import combinations

import pytest
import torch

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise
from lightning_privacy.callbacks.gradient_bottleneck.callback import GradientBottleneck
from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise
from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
from lightning_privacy.core import registry
from lightning_privacy.core.conflicts import Environment, find_conflicts
from lightning_privacy.core.import_path import import_object
from lightning_privacy.errors import DefenceConflictError
from lightning_privacy.testing.contract import CHECKS
from lightning_privacy.testing.contract_ranks import check_ranks
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.settings import DefenceCase, split_images, tiny_classifier
from lightning_privacy.testing.tiny_modules import TinyDenoiser

BOTTLENECK = {"head": "network.head", "latents": 4}
CASES = {
    "pruning": DefenceCase(GradientPruning, {"share": 0.7}, {"share": 0.0}, tiny_classifier),
    "pruning_global": DefenceCase(GradientPruning, {"share": 0.7, "scope": "global"}, {"share": 0.0}, tiny_classifier),
    "noise": DefenceCase(GradientNoise, {"std": 0.1, "seed": 0}, {"std": 0.0}, tiny_classifier),
    "noise_private": DefenceCase(GradientNoise, {"std": 0.1}, {"std": 0.0}, tiny_classifier, world_invariant=False),
    "clip_batch": DefenceCase(
        ClipAndNoise,
        {"max_norm": 0.5, "unit": "batch", "seed": 0},
        {"max_norm": 1e9, "noise_multiplier": 0.0},
        tiny_classifier,
    ),
    "clip_record": DefenceCase(ClipAndNoise, {"max_norm": 0.5, "unit": "record", "seed": 0}, None, TinyDenoiser),
    "clip_auto": DefenceCase(ClipAndNoise, {"max_norm": 0.5, "seed": 0}, None, tiny_classifier),
    "bottleneck": DefenceCase(GradientBottleneck, BOTTLENECK, None, tiny_classifier, world_invariant=False),
}
# Variants repeat what their arguments change alone; what is registered passes the whole contract with all others.
FEW = ("zero_strength", "resume", "requirements")
WHOLE = ("pruning", "noise", "clip_auto", "bottleneck")
ELSEWHERE = [name for name in WHOLE if CASES[name].name in registry.DEFENCES.names()]
HERE = [name for name in CASES if name not in ELSEWHERE]
CHECKED = [(name, check) for name in HERE for check in CHECKS if name in WHOLE or check in FEW]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    ours = {case.name: case.defence for case in CASES.values()}
    monkeypatch.setattr(registry.DEFENCES, "_targets", {**registry.DEFENCES._targets, **ours})


@pytest.mark.parametrize(("name", "check"), CHECKED)
def test_contract(name, check, tmp_path):
    CHECKS[check](CASES[name], tmp_path)


@pytest.mark.dist
@pytest.mark.parametrize("name", [name for name in HERE if name != "clip_batch"])
def test_ranks(name, tmp_path, rank_pool):
    check_ranks(CASES[name], tmp_path, rank_pool)


@pytest.mark.parametrize(("one", "other"), list(combinations(WHOLE, 2)))
def test_pairs_train_together_or_are_refused_as_declared(one, other, tmp_path):
    pair = [CASES[one].build(), CASES[other].build()]
    declared = find_conflicts(pair, Environment())
    assert bool(declared) == ("clip_auto" in (one, other) and {one, other} & {"pruning", "noise"} != set())
    if declared:
        with pytest.raises(DefenceConflictError):
            fit(tmp_path, tiny_classifier(), split_images(), pair, limit_train_batches=1)
        return
    runs = [
        fit(tmp_path, tiny_classifier(), split_images(), order, limit_train_batches=2) for order in (pair, pair[::-1])
    ]
    assert all(v.isfinite().all() for v in runs[0].weights.values())
    if "bottleneck" not in (one, other):  # whose draws have a seed of their own
        assert not compare(runs[0].weights, runs[1].weights)


@pytest.mark.parametrize("defence", [GradientPruning, GradientNoise, ClipAndNoise])
def test_an_update_is_defended_without_being_changed_and_again_the_same(defence):
    update = {"w": torch.randn(4, 3), "b": torch.randn(4)}
    before = {k: v.clone() for k, v in update.items()}
    first, again = (defence().defended_update(update, torch.Generator().manual_seed(3)) for _ in range(2))
    assert not compare(update, before) and not compare(first, again)
    assert compare(first, update)


@pytest.mark.parametrize("defence", [GradientPruning, GradientNoise, ClipAndNoise, GradientBottleneck])
def test_every_adaptive_attack_is_built_without_arguments_and_one_knows_the_settings(defence):
    built = [import_object(path)() for path in defence.adaptive_attacks]
    informed = defence().informed_attacks()
    assert all(isinstance(attack, LeakageAttack) for attack in (*built, *informed))
    assert built[0] == informed[0]  # the defaults of an attack are the defaults of its defence
    assert "none" in defence().guarantee
