"""The attack that knows SMP-LoRA: it reads what the proxy reads, averaged, and what the proxy does not read."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.calibrated_loss import SMALLEST_ERROR
from lightning_privacy.attacks.membership.observed import observed, timestep_ranges
from lightning_privacy.attacks.membership.ridge import RidgeLogistic, fit_ridge_logistic
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Signals

__all__ = ["ProxyAwareAttack"]


class ProxyAwareAttack:
    """A trained attacker that knows the defence and owns non-members which the defence never saw.

    SMP-LoRA makes one draw's calibrated error uninformative *to its proxy*. This attacker therefore looks at what that
    proxy cannot: the calibrated error averaged over all draws and within timestep ranges, its spread over draws, its
    squared deviation from the usual value (the defence may push members to either side), and the directions in which
    the error *map* changed most. A ridge logistic regression with an inner cross-validated penalty weighs them.

    Args:
        bins: At most so many timestep ranges.
        directions: Principal directions of the map's change that are read.
    """

    name = "smp_lora_proxy_aware"
    requires = frozenset({"loss", "reference_loss", "error_map", "reference_error_map"})
    access = "loss and error-map queries to the model and its public base; knows the defence; own non-members"
    learns = True

    def __init__(self, bins: int = 3, directions: int = 6) -> None:
        self.bins, self.directions = bins, directions
        self.rule: RidgeLogistic | None = None

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit the regression; return whether its gradient vanished."""
        both = [self._parts(members), self._parts(nonmembers)]
        scalars, maps = (torch.cat(part) for part in zip(*both, strict=True))
        self._usual = scalars.mean(0)
        self._map_mean = maps.mean(0)
        # Directions come from both classes without labels: nothing here has seen who is a member.
        _, _, basis = torch.linalg.svd(maps - self._map_mean, full_matrices=False)
        self._basis = basis[: self.directions]
        labels = torch.tensor([1] * len(members) + [0] * len(nonmembers))
        self.rule = fit_ridge_logistic(self._features(scalars, maps), labels, seeded_generator(seed, self.name))
        return self.rule.converged

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the log-odds of membership.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.rule is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        return self.rule.log_odds(self._features(*self._parts(signals)))

    def _parts(self, signals: Signals) -> tuple[Float[Tensor, "n scalars"], Float[Tensor, "n features"]]:
        loss, reference = (
            observed(signals, f, self.name).double().clamp_min(SMALLEST_ERROR).log() for f in ("loss", "reference_loss")
        )
        change = loss - reference
        scalars = [change.mean(1), change.std(1) if change.shape[1] > 1 else torch.zeros(len(change)).double()]
        scalars += [change[:, draws].mean(1) for draws in timestep_ranges(signals.timesteps, self.bins)]
        maps = [
            observed(signals, f, self.name).double().mean(1).clamp_min(SMALLEST_ERROR).log()
            for f in ("error_map", "reference_error_map")
        ]
        return torch.stack(scalars, 1), maps[0] - maps[1]

    def _features(self, scalars: Tensor, maps: Tensor) -> Float[Tensor, "n features"]:
        return torch.cat([scalars, (scalars - self._usual).square(), (maps - self._map_mean) @ self._basis.T], 1)
