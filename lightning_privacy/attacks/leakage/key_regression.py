"""The key regressed behind a lock whose weights are known."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack, search
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import KeySecrets
from lightning_privacy.attacks.leakage.update import SharedUpdate

__all__ = ["KeyRegression"]


@dataclass(frozen=True)
class KeyRegression:
    """Searches for the pictures and for the key, through the lock's own weights.

    It knows more than `JointOptimisation`. Behind a softplus it does as well; behind a ReLU it is the weaker one, because a
    channel that the guessed key switches off gives it no direction.

    Args:
        attack: The search that is extended.

    Source:
        The adaptive attack (``gen_key``) of the key-lock defence's released code, arXiv 2305.04095.
    """

    name: ClassVar[str] = "key_regression"
    access: ClassVar[str] = "public weights, the lock's weights and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: SearchAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update and the secrets of the key that was found; see `LeakageAttack`."""
        return search([Round(target, update)], replace(self.attack.plan(), secrets=KeySecrets()), self.name, seed)[0]
