"""Updates of one client that an audit lets an attacker see together, and each one's part of what is found of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from lightning_privacy.attacks.leakage.engine import Round
from lightning_privacy.attacks.leakage.joint import PooledJoint
from lightning_privacy.attacks.leakage.recovered import LeakageAttack, Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.core.randomness import derive_seed

__all__ = ["Pools"]


@dataclass
class Pools:
    """Updates in pools of consecutive numbers; each pool is attacked once.

    Args:
        victims: Updates.
        size: Updates a pool, at most; the last pool may have fewer.

    Example:
        >>> pools = Pools(victims=5, size=2)
        >>> [pools.members(n) for n in (0, 3, 4)]
        [range(0, 2), range(2, 4), range(4, 5)]
    """

    victims: int
    size: int = 1
    _found: dict[Any, list[Recovered]] = field(default_factory=dict)

    def first(self, number: int) -> int:
        """Return the first update of a pool."""
        return number // self.size * self.size

    def members(self, number: int) -> range:
        """Return the updates that are attacked together with one of them, itself included."""
        return range(self.first(number), min(self.first(number) + self.size, self.victims))

    def within(
        self, attack: LeakageAttack, where: tuple[Any, ...], number: int, of: Callable[[int], Round], seed: int
    ) -> LeakageAttack:
        """Return an attack that has the whole pool where it can use it, and any other as it is.

        Args:
            attack: The attack.
            where: What tells its pools from those under another condition.
            number: Of the update that it is asked about.
            of: Number -> what an attacker observes.
            seed: Of the audit.
        """
        if not isinstance(attack, PooledJoint):
            return attack

        def ask() -> Recovered:
            key = (attack.name, *where, self.first(number))
            if key not in self._found:
                members = self.members(number)
                # what is drawn here must not move what other attacks draw
                with torch.random.fork_rng(devices=[]):
                    rounds = [of(each) for each in members]
                    own = derive_seed(seed, "pool", *where, members.start)
                    torch.manual_seed(own)
                    self._found[key] = attack.reconstruct_rounds(rounds, own)
            return self._found[key][number - self.first(number)]

        # a protocol's class variables, here of the instance
        return cast("LeakageAttack", _Within(attack.name, attack.access, attack.estimates_secrets, ask))


@dataclass(frozen=True)
class _Within:
    """One update's part of an attack on a pool."""

    name: str
    access: str
    estimates_secrets: bool
    ask: Callable[[], Recovered]

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        return self.ask()
