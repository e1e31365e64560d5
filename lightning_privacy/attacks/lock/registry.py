"""Attacks on locked models by name."""

from collections.abc import Callable, Mapping

from lightning_privacy.attacks.lock.distillation import Distillation
from lightning_privacy.attacks.lock.finetuning import FineTune, HeadTune
from lightning_privacy.attacks.lock.guessing import NoKey
from lightning_privacy.attacks.lock.residual import MeanResidual
from lightning_privacy.attacks.lock.score_map import ScoreMap
from lightning_privacy.attacks.lock.target import LockAttack
from lightning_privacy.attacks.lock.unlocker import LabelUnlocker, PairUnlocker
from lightning_privacy.attacks.lock.value_map import BlockMap, ValueOrder
from lightning_privacy.attacks.lock.weight_layout import WeightLayout

__all__ = ["ATTACKS"]

ATTACKS: Mapping[str, Callable[..., LockAttack]] = {
    attack.name: attack
    for attack in (
        NoKey,
        MeanResidual,
        ValueOrder,
        BlockMap,
        ScoreMap,
        PairUnlocker,
        LabelUnlocker,
        FineTune,
        HeadTune,
        WeightLayout,
        Distillation,
    )
}
"""Every one can be built without arguments; those that guess keys need an editor and are built by an audit."""
