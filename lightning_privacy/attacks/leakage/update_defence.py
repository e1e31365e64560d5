"""What a defence offers that changes what a client shares, so that the shared update can be attacked as it leaves."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_privacy.attacks.leakage.recovered import LeakageAttack

__all__ = ["InformedDefence", "RecordDefence", "UpdateDefence"]


@runtime_checkable
class UpdateDefence(Protocol):
    """A defence that changes an update before it is shared: it prunes, clips, perturbs or withholds.

    It is a pure function of the update and of the generator, so that the same update can be defended again for an attack.
    """

    def defended_update(self, gradients: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of an update.

        Args:
            gradients: A gradient or a weight difference, by the parameter's name in the module; not changed.
            generator: Of all that the defence draws.

        Returns:
            What leaves the client; a name that is absent was withheld.
        """
        ...


@runtime_checkable
class RecordDefence(UpdateDefence, Protocol):
    """An update defence that can act on each record's gradient before their mean is taken.

    Attributes:
        resolved_unit: ``record`` where it does so in the present run.
    """

    resolved_unit: str | None

    def defended_records(self, per_record: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of the mean of records' gradients.

        Args:
            per_record: Gradients by parameter name, their first dimension the record; not changed.
            generator: Of all that the defence draws.
        """
        ...


@runtime_checkable
class InformedDefence(Protocol):
    """A defence that names the attacks on updates that know it with its settings."""

    def informed_attacks(self) -> tuple[LeakageAttack, ...]:
        """Return the attacks, ready to run; a parameter ``units`` is given how many clipped gradients are averaged."""
        ...
