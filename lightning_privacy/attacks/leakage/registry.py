"""Attacks on shared updates by name."""

from lightning_privacy.attacks.leakage.analytic import FirstLayerRecovery
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.generator import GeneratorNetwork
from lightning_privacy.attacks.leakage.imprint import Imprint
from lightning_privacy.attacks.leakage.inverting_gradients import InvertingGradients
from lightning_privacy.attacks.leakage.joint import JointOptimisation, PooledJoint
from lightning_privacy.attacks.leakage.key_regression import KeyRegression
from lightning_privacy.attacks.leakage.known_lock import KnownLock
from lightning_privacy.attacks.leakage.latent import LatentSearch
from lightning_privacy.attacks.leakage.partial import PartialMatching
from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.attacks.leakage.wrong_key import WrongKey

__all__ = ["ATTACKS"]

ATTACKS: dict[str, type[LeakageAttack]] = {
    attack.name: attack
    for attack in (
        DeepLeakage,
        InvertingGradients,
        GeneratorNetwork,
        LatentSearch,
        FirstLayerRecovery,
        Imprint,
        WrongKey,
        JointOptimisation,
        PooledJoint,
        KeyRegression,
        KnownLock,
        PartialMatching,
    )
}
"""Every attack can be built without arguments."""
