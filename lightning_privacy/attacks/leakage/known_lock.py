"""The first round, in which the server still knows every client's lock and lacks only the keys."""

from dataclasses import dataclass, field
from typing import ClassVar

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import SearchAttack
from lightning_privacy.attacks.leakage.joint import JointOptimisation
from lightning_privacy.attacks.leakage.key_regression import KeyRegression
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["KnownLock"]


@dataclass(frozen=True)
class KnownLock:
    """Uses the lock that the server itself has sent out: as a start for the secrets, and to regress the key.

    Keys that are not centred, such as uniform ones in (0, 1), make most of the scale and the shift a property of the lock, so
    that the mean over keys is a good start. The better of the two searches by matching loss is returned.

    Args:
        attack: The search that is extended.
    """

    name: ClassVar[str] = "known_lock"
    access: ClassVar[str] = "public weights, the lock's weights and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: SearchAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update and the secrets; see `LeakageAttack`.

        Raises:
            InputError: The target does not give the lock away.
        """
        if target.lock is None or target.draw_secrets is None:
            raise InputError(
                "This attack needs the lock as it was sent out; give the target `lock` and `draw_secrets`."
            )
        found = [
            JointOptimisation(self.attack, "mean").reconstruct(target, update, seed),
            KeyRegression(self.attack).reconstruct(target, update, seed),
        ]
        return min(found, key=lambda recovered: recovered.matching_loss)
