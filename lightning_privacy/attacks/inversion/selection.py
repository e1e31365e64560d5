"""The strongest attack on each victim, chosen without looking at the victim."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.attacks.inversion.observing import mismatch, observe_all
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.picture_loss import picture_error
from lightning_privacy.attacks.inversion.tap_scale import tap_values
from lightning_privacy.attacks.inversion.target import InversionTarget
from lightning_privacy.errors import InputError

__all__ = ["ErrorLaw", "Selection", "Tried", "fit_error_law", "select_strongest"]

_SMALLEST = 1e-12
_FOLDS = 5  # chosen here
_FEWEST = 2 * _FOLDS  # own pictures; below, a law fitted on a part of them says nothing


@dataclass(frozen=True)
class Tried:
    """What one attack made.

    Args:
        own: Its reconstructions of the attacker's own validation pictures.
        victims: Its reconstructions of the victims.
    """

    own: Float[Tensor, "m channels height width"]
    victims: Float[Tensor, "victims channels height width"]


@dataclass(frozen=True)
class Selection:
    """The strongest attack.

    Args:
        pictures: A reconstruction of each victim, by the attack that was chosen for it.
        chosen: That attack's name, victim by victim.
        best_single: The attack of the smallest mean squared error on the attacker's own validation pictures.
        own_error: That error of every attack.
        per_victim: Whether choosing victim by victim did better on held-out own pictures; else all get ``best_single``.
    """

    pictures: Float[Tensor, "victims channels height width"]
    chosen: tuple[str, ...]
    best_single: str
    own_error: Mapping[str, float]
    per_victim: bool


@dataclass(frozen=True)
class ErrorLaw:
    r"""How an attack's error grows with its own mismatch: :math:`e = s \exp(\bar y + b (t - \bar t))`, t = log mismatch.

    Args:
        centre: Mean of t, inside ``lowest`` and ``highest`` of what was seen; beyond them the law stays level.
        level: Mean of y = log error.
        slope: b, at least 0 and shrunk towards 0 by its own uncertainty.
        smear: s, the mean of exp(residual), by which the law is right in the mean.
        lowest: Of t.
        highest: Of t.
    """

    centre: float
    level: float
    slope: float
    smear: float
    lowest: float
    highest: float

    def __call__(self, mismatches: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the expected error at each mismatch."""
        t = mismatches.double().clamp_min(_SMALLEST).log().clamp(self.lowest, self.highest)
        return self.smear * (self.level + self.slope * (t - self.centre)).exp()


def fit_error_law(mismatches: Float[Tensor, " n"], errors: Float[Tensor, " n"]) -> ErrorLaw:
    """Fit how an attack's error depends on its mismatch, on pictures that the attacker knows.

    Args:
        mismatches: How badly each reconstruction explains what leaked; see `observing.mismatch`.
        errors: Its mean squared error.

    Example:
        >>> t = torch.linspace(-3, 0, 20).exp()
        >>> law = fit_error_law(t, 0.1 * t)
        >>> round(law.slope, 3), round(float(law(t[:1]) / t[0]), 4)
        (1.0, 0.1)

    Source:
        Smearing: Duan, JASA 1983. Shrinkage by the positive part of 1 - 1/t^2: James and Stein 1961.
    """
    t, y = (x.double().clamp_min(_SMALLEST).log() for x in (mismatches, errors))
    centre, level = t.mean(), y.mean()
    spread = (t - centre).square().sum()
    slope = torch.zeros((), dtype=t.dtype)
    if len(t) > 2 and float(spread) > 1e-9:
        raw = ((t - centre) * (y - level)).sum() / spread
        variance = (y - level - raw * (t - centre)).square().sum() / (len(t) - 2) / spread
        kept = (1 - variance / raw.square().clamp_min(_SMALLEST)).clamp(0, 1)
        slope = (raw * kept).clamp_min(0)
    smear = (y - level - slope * (t - centre)).exp().mean()
    return ErrorLaw(float(centre), float(level), float(slope), float(smear), float(t.min()), float(t.max()))


def select_strongest(
    target: InversionTarget,
    own_pictures: Float[Tensor, "m channels height width"],
    own_observed: Float[Tensor, "m ..."],
    observed: Float[Tensor, "victims ..."],
    tried: Mapping[str, Tried],
    seed: int,
) -> Selection:
    """Choose for each victim the attack whose error is expected to be smallest, by laws fitted on own pictures.

    An attacker knows how badly each reconstruction explains what leaked, and on its own pictures how that goes with the
    true error. The victims' pictures are not among the arguments: the choice is the attacker's, and adds no optimism.

    Args:
        target: The model.
        own_pictures: The attacker's own validation pictures.
        own_observed: What leaves the model for them, as the attacks saw it.
        observed: What leaked of the victims.
        tried: What each attack made of both, by name.
        seed: Of the noise that a defence draws.

    Returns:
        The choice. With fewer than 10 own pictures, or where choosing victim by victim did not lower the error on held-out
        own pictures, every victim gets the best single attack.

    Raises:
        InputError: no attack was tried, or one made another number of pictures.
    """
    counts = {name: (len(t.own), len(t.victims)) for name, t in tried.items()}
    if not tried or any(len(t.own) != len(own_pictures) or len(t.victims) != len(observed) for t in tried.values()):
        raise InputError(
            "The strongest attack is chosen among attacks that reconstructed every own picture and every victim, but got "
            f"{counts} for {len(own_pictures)} and {len(observed)}."
        )
    names = list(tried)
    with own_randomness(seed, "selection", observed.device):
        own_fit, victim_fit = (
            torch.stack([_explained(target, pictures, z) for pictures in made]).cpu()
            for made, z in (
                ([t.own for t in tried.values()], own_observed),
                ([t.victims for t in tried.values()], observed),
            )
        )
    errors = torch.stack([picture_error(t.own, own_pictures) for t in tried.values()]).double().cpu()
    best = int(errors.mean(1).argmin())
    per_victim = len(own_pictures) >= _FEWEST and _choosing_helps(own_fit, errors)
    choice = _choose(own_fit, errors, victim_fit) if per_victim else torch.full((len(observed),), best)
    stacked = torch.stack([t.victims for t in tried.values()])
    return Selection(
        stacked[choice.to(stacked.device), torch.arange(len(observed), device=stacked.device)],
        tuple(names[k] for k in choice.tolist()),
        names[best],
        {name: float(e) for name, e in zip(names, errors.mean(1), strict=True)},
        per_victim,
    )


def _explained(target: InversionTarget, pictures: Tensor, z: Tensor) -> Tensor:
    return mismatch(tap_values(observe_all(target, pictures), target.tap), tap_values(z.float(), target.tap))


def _choose(
    own_fit: Float[Tensor, "attacks m"], errors: Float[Tensor, "attacks m"], fit: Float[Tensor, "attacks n"]
) -> Int[Tensor, " n"]:
    laws = [fit_error_law(t, e) for t, e in zip(own_fit, errors, strict=True)]
    return torch.stack([law(t) for law, t in zip(laws, fit, strict=True)]).argmin(0)


def _choosing_helps(own_fit: Float[Tensor, "attacks m"], errors: Float[Tensor, "attacks m"]) -> bool:
    """Say whether laws fitted on four fifths choose better on the last fifth than one attack for all does."""
    m = errors.shape[1]
    fold = torch.arange(m) % _FOLDS
    gained = torch.zeros(m, dtype=torch.double)
    for k in range(_FOLDS):
        held: Bool[Tensor, " m"] = fold == k
        single = errors[errors[:, ~held].mean(1).argmin(), held]
        choice = _choose(own_fit[:, ~held], errors[:, ~held], own_fit[:, held])
        gained[held] = single - errors[:, held].gather(0, choice[None])[0]
    return bool(gained.sum() > 0)
