"""Everything that attackers make of one tap: reconstructions by each attack, by the best per victim, and the references."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.observing import observe_all
from lightning_privacy.attacks.inversion.references import NearestAux
from lightning_privacy.attacks.inversion.selection import Selection, Tried, select_strongest
from lightning_privacy.attacks.inversion.target import FitRecord, InversionAttack, InversionTarget
from lightning_privacy.callbacks.audits.inversion_results import Reconstructed, Victims

__all__ = ["STRONGEST", "AttackerPictures", "applies", "attack_tap", "watched"]

_JUDGED = 64  # chosen here: own pictures on which attacks are compared; a decoder's plateau is seen on all of them
STRONGEST = "strongest_per_victim"
"""Name of the reconstructions that the attacker would hand in: of each victim, those of the attack it trusts most."""


@dataclass(frozen=True)
class AttackerPictures:
    """The attacker's own pictures, on the module's device.

    Args:
        train: What networks are trained on.
        val: What every choice is made on.
        train_labels: Classes of ``train``; None where the data have none.
    """

    train: Float[Tensor, "n channels height width"]
    val: Float[Tensor, "m channels height width"]
    train_labels: Tensor | None = None


def watched(target: InversionTarget, queries: int) -> InversionTarget:
    """Return the model as one sees it who watches each picture several times and takes the mean.

    Attackers learn on the same means, so that what noise remains is that of the victims.

    Args:
        target: The model.
        queries: How often.
    """
    if queries == 1:
        return target
    return replace(target, observe=lambda pictures: sum(target.observe(pictures) for _ in range(queries)) / queries)


def applies(attack: InversionAttack, target: InversionTarget) -> bool:
    """Return whether an attack has anything to say at a tap; one that does not say so always has.

    Args:
        attack: The attack.
        target: The model.
    """
    says: Callable[[InversionTarget], bool] | None = getattr(attack, "applies", None)
    return says is None or says(target)


def attack_tap(
    target: InversionTarget,
    attacks: Sequence[InversionAttack],
    own: AttackerPictures,
    victims: Mapping[Victims, Float[Tensor, "victims channels height width"]],
    queries: int,
    seed: int,
) -> list[Reconstructed]:
    """Return every attack's reconstructions of every victim; nothing is chosen by looking at the victims.

    Args:
        target: The model at one tap.
        attacks: The attacks, not yet fitted for this target.
        own: The attacker's pictures.
        victims: Pictures by kind.
        queries: Times that each victim is watched.
        seed: Of the attacks.

    Returns:
        One entry an attack and kind, one of the best per victim, marked as the strongest, and as a reference the
        attacker's own picture whose output is nearest.
    """
    target = watched(target, queries)
    nearest = NearestAux()
    nearest.fit(target, own.train, own.val, seed)
    leaked: dict[Victims, Tensor] = {kind: observe_all(target, pictures) for kind, pictures in victims.items()}
    # A search takes as long for each of them as for a victim; the last ones, because attacks tune on the first.
    judged = own.val[-_JUDGED:]
    leaked_val = observe_all(target, judged)
    fits: dict[str, FitRecord] = {}
    on_val: dict[str, Tensor] = {}
    guesses: dict[str, dict[Victims, Tensor]] = {}
    attacks = [attack for attack in attacks if applies(attack, target)]
    for attack in attacks:
        fits[attack.name] = attack.fit(target, own.train, own.val, seed)
        on_val[attack.name] = attack.reconstruct(target, leaked_val, seed).clamp(0, 1)
        guesses[attack.name] = {kind: attack.reconstruct(target, z, seed).clamp(0, 1) for kind, z in leaked.items()}
    made = []
    for kind, z in leaked.items():
        tried = {name: Tried(on_val[name], guesses[name][kind]) for name in fits}
        selection = select_strongest(target, judged, leaked_val, z, tried, seed)
        made += [
            Reconstructed(
                target.tap,
                kind,
                attack.name,
                attack.access,
                guesses[attack.name][kind].cpu(),
                fits[attack.name],
                selection.own_error[attack.name],
            )
            for attack in attacks
        ]
        made.append(_chosen(target, kind, selection, attacks, fits))
        name = f"nearest_own_picture_at_{target.tap}"
        known = nearest.reconstruct(target, z, seed)
        made.append(Reconstructed(None, kind, name, "queries", known.cpu(), FitRecord()))
    return made


def _chosen(
    target: InversionTarget,
    kind: Victims,
    selection: Selection,
    attacks: Sequence[InversionAttack],
    fits: Mapping[str, FitRecord],
) -> Reconstructed:
    used = [attack for attack in attacks if attack.name in selection.chosen]
    unfinished = [attack.name for attack in used if not fits[attack.name].converged]
    note = f"Of these attackers {', '.join(unfinished)} did not converge." if unfinished else ""
    return Reconstructed(
        target.tap,
        kind,
        STRONGEST,
        "white_box" if any(attack.access == "white_box" for attack in used) else "queries",
        selection.pictures.cpu(),
        FitRecord(converged=not unfinished, note=note),
        selection.own_error[selection.best_single],
        strongest=True,
        extra={
            "chosen": dict(Counter(selection.chosen)),
            "best_single": selection.best_single,
            "own_error": dict(selection.own_error),
        },
    )
