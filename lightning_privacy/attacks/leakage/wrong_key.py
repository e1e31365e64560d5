"""An attacker who takes a secret drawn at random for the client's: what defences that hide a key are usually tested with."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.recovered import LeakageAttack, Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["WrongKey"]


@dataclass(frozen=True)
class WrongKey:
    """Runs an attack under the secrets of another key, as if they were the client's.

    It is a control: a defence that it does not get through may still fall to `JointOptimisation`.

    Args:
        attack: The attack that is run.

    Source:
        The evaluation of the key-lock defence, arXiv 2305.04095, released code.
    """

    name: ClassVar[str] = "wrong_key"
    access: ClassVar[str] = "public weights, the form of the lock and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: LeakageAttack = field(default_factory=DeepLeakage)

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return what the attack makes of the update; see `LeakageAttack`.

        Raises:
            InputError: The model has no secrets, or nothing says how they are drawn.
        """
        if not target.secrets:
            raise InputError("The model keeps nothing to itself, so that there is no wrong key; run the attack itself.")
        if target.draw_secrets is None:
            raise InputError("A wrong key has to be drawn as keys are; give the target `draw_secrets`.")
        guess = target.draw_secrets(seeded_generator(seed, self.name))
        found = self.attack.reconstruct(target.with_secrets(guess), update, seed)
        return replace(found, secrets={name: value.detach().cpu() for name, value in guess.items()})
