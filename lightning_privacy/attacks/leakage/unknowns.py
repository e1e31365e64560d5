"""What an attacker searches over: pictures in one parametrisation or another, and secrets of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.leakage.target import LeakageTarget, Secret
from lightning_privacy.errors import InputError

__all__ = ["FreeSecrets", "KeySecrets", "NoSecrets", "PictureModel", "Pixels", "SecretModel", "Variables"]

Variables = dict[str, Tensor]
Pictures = Float[Tensor, "batch channels height width"]
_SMALLEST_SCALE = 1e-3  # where a nonnegative secret starts that was drawn as zero: softplus never reaches zero


@runtime_checkable
class PictureModel(Protocol):
    """A parametrisation of pictures."""

    def start(self, target: LeakageTarget, n: int, generator: torch.Generator) -> Variables:
        """Return random variables to start from (CPU, float32 or more).

        Args:
            target: The model, for shapes.
            n: Pictures.
            generator: Of the start.
        """
        ...

    def pictures(self, variables: Variables) -> Pictures:
        """Return the pictures that the variables stand for; differentiable."""
        ...

    def confine(self, variables: Variables) -> Variables:
        """Return the variables after an optimiser's step, moved back to where they may be; with a leading dimension."""
        ...

    def penalty(self, variables: Variables) -> Float[Tensor, ""]:
        """Return how implausible the variables are, which is added to the matching loss; differentiable."""
        ...


@runtime_checkable
class SecretModel(Protocol):
    """A parametrisation of what the client keeps to itself."""

    def start(self, target: LeakageTarget, generator: torch.Generator) -> Variables:
        """Return random variables to start from."""
        ...

    def secrets(self, target: LeakageTarget, variables: Variables) -> dict[str, Tensor]:
        """Return the secrets that the variables stand for; differentiable."""
        ...


@dataclass(frozen=True)
class Pixels:
    """Pictures as their own pixels.

    Args:
        spread: Standard deviation of the normal start around middle grey.
        boxed: Whether values are clipped to [0, 1] after every step.
    """

    spread: float | int = 0.1  # chosen here, see DeepLeakage
    boxed: bool = False

    def start(self, target: LeakageTarget, n: int, generator: torch.Generator) -> Variables:
        """Return normal pixels around middle grey."""
        noise = torch.randn((n, *target.image_shape), generator=generator, dtype=torch.float64)
        return self.confine({"pixels": 0.5 + self.spread * noise})

    def pictures(self, variables: Variables) -> Pictures:
        """Return the pixels."""
        return variables["pixels"]

    def confine(self, variables: Variables) -> Variables:
        """Clip the pixels where they are boxed."""
        return {"pixels": variables["pixels"].clamp(0, 1)} if self.boxed else variables

    def penalty(self, variables: Variables) -> Float[Tensor, ""]:
        """Return zero: any pixel is as good as any other."""
        return variables["pixels"].new_zeros(())


class NoSecrets:
    """For a model that hides nothing, or an attacker who has decided what the secrets are."""

    def start(self, target: LeakageTarget, generator: torch.Generator) -> Variables:
        """Return nothing.

        Raises:
            InputError: The model does hide something.
        """
        if target.secrets:
            raise InputError(
                f"The client keeps {sorted(target.secrets)} to itself, so that its gradients cannot be simulated; wrap the "
                "attack in WrongKey, or take JointOptimisation."
            )
        return {}

    def secrets(self, target: LeakageTarget, variables: Variables) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


@dataclass(frozen=True)
class FreeSecrets:
    """Every secret as free numbers, whatever key and lock they came from: 2C of them for a locked norm of C channels.

    Nonnegative secrets are the softplus of a free number. Entries that the update shows to be zero are held there.

    Args:
        begin: ``draw`` starts from secrets as another client could have them, ``mean`` from the mean of many draws, which
            is close where the lock is known and keys are not centred; ``one`` from scale 1 and shift 0, by name.
        zero: Secret name -> entries that are zero for certain, see `dead_channels`.
    """

    begin: Literal["draw", "mean", "one"] = "draw"
    zero: Mapping[str, Tensor] | None = None

    DRAWS: ClassVar[int] = 256  # chosen here: the mean is then within 6 % of a standard deviation

    def start(self, target: LeakageTarget, generator: torch.Generator) -> Variables:
        """Return the free numbers of a plausible start."""
        if self.begin == "one" or target.draw_secrets is None:
            guess = {name: torch.ones(s.shape) * (not name.endswith("bias")) for name, s in target.secrets.items()}
            jitter = 0.1  # chosen here: restarts have to differ
            guess = {k: v + jitter * torch.randn(v.shape, generator=generator) for k, v in guess.items()}
        elif self.begin == "mean":
            draws = [target.draw_secrets(generator) for _ in range(self.DRAWS)]
            guess = {name: torch.stack([d[name].detach() for d in draws]).mean(0) for name in target.secrets}
        else:
            guess = {name: value.detach() for name, value in target.draw_secrets(generator).items()}
        return {f"secret.{k}": _free(guess[k].cpu().double(), s) for k, s in target.secrets.items()}

    def secrets(self, target: LeakageTarget, variables: Variables) -> dict[str, Tensor]:
        """Return the secrets that the free numbers stand for."""
        found = {k: _bound(variables[f"secret.{k}"], s) for k, s in target.secrets.items()}
        for name, dead in (self.zero or {}).items():
            found[name] = found[name] * ~dead.to(found[name].device)
        return found


class KeySecrets:
    """The key alone, behind a lock whose weights are known."""

    def start(self, target: LeakageTarget, generator: torch.Generator) -> Variables:
        """Return a key drawn as clients draw theirs.

        Raises:
            InputError: The attacker does not know the lock.
        """
        if target.lock is None:
            raise InputError(
                "Regressing the key needs the lock's weights, which this target does not give away; take JointOptimisation."
            )
        return {"key": target.lock.draw_key(generator).detach().cpu().double()}

    def secrets(self, target: LeakageTarget, variables: Variables) -> dict[str, Tensor]:
        """Return what the lock makes of the key."""
        return dict(target.lock.derive(variables["key"])) if target.lock else {}


def _free(value: Tensor, secret: Secret) -> Tensor:
    if not secret.nonnegative:
        return value
    value = value.clamp_min(_SMALLEST_SCALE)
    return value + torch.log(-torch.expm1(-value))


def _bound(free: Tensor, secret: Secret) -> Tensor:
    return torch.nn.functional.softplus(free) if secret.nonnegative else free
