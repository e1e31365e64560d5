"""The membership attacks by name."""

from lightning_privacy.attacks.membership.averaged_loss import AveragedLoss
from lightning_privacy.attacks.membership.calibrated_loss import CalibratedLoss
from lightning_privacy.attacks.membership.confidence import ClassConfidence, ModifiedEntropy, ScaledConfidence
from lightning_privacy.attacks.membership.h_prime import HPrime
from lightning_privacy.attacks.membership.label_only import AugmentationAgreement, BoundaryDistance
from lightning_privacy.attacks.membership.lira import LiraOffline, LiraOfflineFixed, LiraOnline, LiraOnlineFixed
from lightning_privacy.attacks.membership.population import Population
from lightning_privacy.attacks.membership.quantile import QuantileRegression
from lightning_privacy.attacks.membership.rmia import RmiaOffline, RmiaOnline
from lightning_privacy.attacks.membership.trained_calibrated import TrainedCalibrated
from lightning_privacy.attacks.membership.worst_case import WorstCaseAttack
from lightning_privacy.core.results import MembershipAttack
from lightning_privacy.errors import InputError

__all__ = ["MEMBERSHIP_ATTACKS", "build_attack", "register_attack"]

MEMBERSHIP_ATTACKS: dict[str, type] = {
    attack.name: attack
    for attack in (
        AveragedLoss,
        CalibratedLoss,
        HPrime,
        TrainedCalibrated,
        ScaledConfidence,
        ClassConfidence,
        ModifiedEntropy,
        Population,
        WorstCaseAttack,
        QuantileRegression,
        AugmentationAgreement,
        BoundaryDistance,
        LiraOffline,
        LiraOfflineFixed,
        LiraOnline,
        LiraOnlineFixed,
        RmiaOffline,
        RmiaOnline,
    )
}
"""Registered classes; each is built without arguments."""


def register_attack(attack: type) -> type:
    """Make an attack known by its ``name``; usable as a class decorator.

    Args:
        attack: A class with the attributes and methods of `MembershipAttack` and no required arguments.

    Raises:
        InputError: it lacks one of them, or another class holds the name.
    """
    missing = [m for m in ("name", "requires", "access", "fit", "score") if not hasattr(attack, m)]
    if missing:
        raise InputError(f"{attack.__name__} is no membership attack: it lacks {', '.join(missing)}.")
    name = attack.name  # pyright: ignore[reportAttributeAccessIssue]
    if MEMBERSHIP_ATTACKS.get(name, attack) is not attack:
        raise InputError(
            f"The attack name `{name}` belongs to {MEMBERSHIP_ATTACKS[name].__name__}; give {attack.__name__} another."
        )
    MEMBERSHIP_ATTACKS[name] = attack
    return attack


def build_attack(name: str) -> MembershipAttack:
    """Return a fresh attack of this name.

    Raises:
        InputError: no such attack; the message lists those there are.
    """
    if name not in MEMBERSHIP_ATTACKS:
        raise InputError(f"No membership attack is called `{name}`; there are {', '.join(sorted(MEMBERSHIP_ATTACKS))}.")
    return MEMBERSHIP_ATTACKS[name]()
