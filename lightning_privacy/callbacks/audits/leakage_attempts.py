"""Every attack on one update, and the choice among them that an attacker can make, who never sees the records."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.leakage.labels import infer_labels
from lightning_privacy.attacks.leakage.local_steps import simulated_update
from lightning_privacy.attacks.leakage.matching import cosine_distance
from lightning_privacy.attacks.leakage.recovered import LeakageAttack, Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["Attempt", "Attempts", "attempt_all", "strongest_of", "update_distance"]

_TAKE_IT_AS_IT_IS = frozenset(
    {"dlg", "inverting_gradients", "grnn", "latent", "partial"}
    | {"wrong_key", "joint", "joint_pooled", "key_regression", "known_lock"}  # they know a lock, and nothing of noise
)


@dataclass(frozen=True)
class Attempt:
    """What one attack made of one update.

    Args:
        pictures: One a record, in no particular order.
        labels: Their classes; -1 where unknown.
        matching_loss: In the attack's own measure.
        start_loss: The same at its random starts.
        distance: Distance of the update that these pictures cause from the shared one, in a measure common to all attacks;
            None where it cannot be simulated.
        converged: Whether the search ended by itself at a small distance.
        note: What a reader must know.
    """

    pictures: Float[Tensor, "records channels height width"]
    labels: Int[Tensor, " records"]
    matching_loss: float
    start_loss: float
    distance: float | None
    converged: bool
    note: str = ""


@dataclass(frozen=True)
class Attempts:
    """All attacks on one update.

    Args:
        by: By name.
        failed: Why others could not run, by name.
        labels: Classes read off the head's gradient; None where they cannot be.
        candidates: Those among which an attacker would choose.
    """

    by: Mapping[str, Attempt]
    failed: Mapping[str, str]
    labels: Int[Tensor, " records"] | None
    candidates: tuple[str, ...] = ()


def attempt_all(
    target: LeakageTarget,
    update: SharedUpdate,
    attacks: Mapping[str, LeakageAttack],
    changed: bool,
    seed: int,
    knowing: Collection[str] = (),
) -> Attempts:
    """Run attacks on an update.

    Args:
        target: The model as the attacker knows it.
        update: What was shared.
        attacks: By name.
        changed: Whether a defence changed the update, so that entries that are zero say nothing.
        seed: Of the attacks.
        knowing: Names of those made for the run's defences. Where a defence changed it, a search that takes it for
            unchanged fits the change, so that its good fit speaks for nothing and it is no candidate beside them.
    """
    made: dict[str, Attempt] = {}
    failed: dict[str, str] = {}
    for name, attack in attacks.items():
        try:
            found = attack.reconstruct(target, update, seed)
        except InputError as unfit:  # it does not apply to such a model; the results say so
            failed[name] = str(unfit)
            continue
        made[name] = Attempt(
            found.pictures.clamp(0, 1).cpu(),
            found.labels.cpu(),
            found.matching_loss,
            found.start_loss,
            update_distance(target, update, found, changed),
            found.converged,
            found.note,
        )
    labels = infer_labels(target, update, seed)
    blind = _TAKE_IT_AS_IT_IS if changed and set(knowing) & set(made) else frozenset()
    candidates = tuple(name for name in made if name not in blind)
    return Attempts(made, failed, None if labels is None else labels.cpu(), candidates)


def update_distance(
    target: LeakageTarget, update: SharedUpdate, found: Recovered, changed: bool = False
) -> float | None:
    """Return how far the update that a reconstruction causes points away from the shared one: the cosine distance.

    An attacker can compute it of any reconstruction, whatever attack it is from, and needs no record for it.

    Args:
        target: The model as the attacker knows it.
        update: What was shared.
        found: The reconstruction, with the secrets that the attack takes for the true ones.
        changed: Whether a defence changed the update; then only entries that are not zero are compared.

    Returns:
        From 0 to 2, before pictures are clipped where the attack says what they cause; None where nothing can be simulated,
        because classes or secrets are not known.
    """
    shared = update.to(torch.float64, target.device)
    values = {name: value.to(target.device, torch.float64) for name, value in found.caused.items()}
    if not values:
        if set(target.secrets) != set(found.secrets) or bool((found.labels < 0).any()):
            return 0.0 if found.matching_loss == 0 and found.converged else None
        exact = target.to(torch.float64)
        secrets = {name: value.to(target.device, torch.float64) for name, value in found.secrets.items()}
        pictures = found.pictures.to(target.device, torch.float64)
        with torch.enable_grad():
            made = simulated_update(exact, exact.complete(secrets), pictures, found.labels.to(target.device), shared)
        values = {name: value.detach() for name, value in made.items()}
    if changed:
        values = {name: value * (shared.values[name] != 0) for name, value in values.items()}
    return float(cosine_distance(values, shared.values, tuple(shared.values)))


def strongest_of(attempts: Mapping[str, Attempt]) -> str:
    """Return which attempt an attacker would hand in: the one that explains the update best.

    That is the smallest common distance; where one of them cannot be simulated, the smallest matching loss as a share of
    that at the start.

    Args:
        attempts: By name; not empty.
    """
    if all(each.distance is not None for each in attempts.values()):
        return min(attempts, key=lambda name: _number(attempts[name].distance))
    return min(attempts, key=lambda name: _share(attempts[name]))


def _share(attempt: Attempt) -> float:
    if attempt.matching_loss == 0:
        return 0.0
    return _number(attempt.matching_loss / attempt.start_loss if attempt.start_loss > 0 else None)


def _number(value: float | None) -> float:
    return float("inf") if value is None or value != value else value
