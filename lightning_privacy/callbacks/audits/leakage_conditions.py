"""Who attacks what: the defended update, and the controls beside which it is judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.leakage.local_steps import weight_difference
from lightning_privacy.attacks.leakage.statistics import statistics_after_step
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import LocalTraining, Mode, SharedUpdate
from lightning_privacy.attacks.leakage.update_defence import UpdateDefence
from lightning_privacy.callbacks.audits.leakage_client import Client
from lightning_privacy.callbacks.audits.leakage_network import PREFIX, AttackedModel
from lightning_privacy.errors import InputError

__all__ = ["CONTROLS", "DEFENDED", "KNOWN_LOCK", "UNDEFENDED", "Condition", "Sharing", "conditions_of"]

DEFENDED, UNDEFENDED, KNOWN_LOCK = "defended", "undefended", "known_lock"
Control = Literal["known_secrets", "ordinary_norm", "plain_update"]
CONTROLS: tuple[Control, ...] = ("known_secrets", "ordinary_norm", "plain_update")
Pictures = Float[Tensor, "batch channels height width"]
Share = Callable[[Pictures, Int[Tensor, " batch"], int], SharedUpdate]


@dataclass(frozen=True)
class Sharing:
    """What clients share; see `LeakageAudit` for what each field means.

    Args:
        mode: State of the normalisation layers.
        local: Local training by the number of records; None for one gradient.
        statistics: Whether running statistics are shared too.
        tells_labels: Whether the attacker knows the classes beforehand.
    """

    mode: Mode = "train"
    local: Callable[[int], LocalTraining] | None = None
    statistics: bool = False
    tells_labels: bool = False


@dataclass(frozen=True)
class Condition:
    """One attacker's view of one kind of update.

    Args:
        name: In results: ``defended`` or ``undefended`` for the update as it leaves, else the control's.
        target: The model as this attacker knows it.
        share: Pictures, classes and a seed -> the update.
        changed: Whether defences have changed the update.
        knows_lock: Whether the attacker knows the locks' weights.
        about: What it is, in words.
    """

    name: str
    target: LeakageTarget
    share: Share
    changed: bool = False
    knows_lock: bool = False
    about: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nothing is withheld or changed, so that attacks that fail here prove nothing anywhere."""
        return self.name in (UNDEFENDED, "ordinary_norm") or (self.name == "plain_update" and not self.target.secrets)

    @property
    def is_control(self) -> bool:
        """Whether no such attack could be made on the run itself."""
        return self.name not in (DEFENDED, UNDEFENDED)


def conditions_of(
    client: Client,
    model: AttackedModel,
    sharing: Sharing,
    defences: Sequence[UpdateDefence],
    defended: bool,
    controls: Sequence[str],
) -> list[Condition]:
    """Return the conditions of a run, the one that counts first.

    Args:
        client: The client.
        model: Its model.
        sharing: What is shared.
        defences: What changes updates, in order.
        defended: Whether the run has any defence.
        controls: Which controls are wanted, `KNOWN_LOCK` among them; those that mean nothing here are left out.

    Raises:
        InputError: nothing of the update is public.
    """

    def share(images: Pictures, labels: Int[Tensor, " batch"], seed: int, by: Sequence[UpdateDefence]) -> SharedUpdate:
        local = None if sharing.local is None else sharing.local(len(images))
        every = client.update(images, labels, sharing.mode, local, by, seed)
        public = {PREFIX + name: value for name, value in every.items() if PREFIX + name in model.target.parameters}
        if not public:
            raise InputError(
                "LeakageAudit: the client shares no parameter's update, so that there is nothing to attack."
            )
        known = {**model.target.parameters, **model.secrets}
        return _shared(public, images, labels, sharing, local, statistics_of(model.target, known, images, sharing))

    whole = Condition(
        DEFENDED if defended else UNDEFENDED,
        model.target,
        lambda images, labels, seed: share(images, labels, seed, defences),
        changed=bool(defences),
        about="the update as it leaves the client",
    )
    found = [whole]
    if model.secrets:
        told = replace(model.target, lock=model.lock, draw_secrets=model.draw_through_lock)
        if model.lock is not None and KNOWN_LOCK in controls:
            found.append(
                replace(whole, name=KNOWN_LOCK, target=told, knows_lock=True, about="an attacker who knows the lock")
            )
        if "known_secrets" in controls:
            open_target = model.target.with_secrets(model.secrets)
            about = "the same update, attacked by one who knows its secrets"
            found.append(replace(whole, name="known_secrets", target=open_target, about=about))
        ordinary = model.ordinary
        if ordinary is not None and "ordinary_norm" in controls:
            plain = lambda images, labels, seed: _of_target(ordinary, images, labels, sharing)  # noqa: E731
            about = "the same network with an ordinary scale and shift, nothing withheld or changed"
            found.append(Condition("ordinary_norm", ordinary, plain, about=about))
    if defences and "plain_update" in controls:
        about = "the update before defences have changed it"
        raw: Share = lambda images, labels, seed: share(images, labels, seed, ())  # noqa: E731
        found.append(replace(whole, name="plain_update", share=raw, changed=False, about=about))
    return found


def statistics_of(
    target: LeakageTarget, parameters: dict[str, Tensor], images: Pictures, sharing: Sharing
) -> dict[str, Tensor]:
    """Return the running statistics that are shared after a step; none where they are not.

    Args:
        target: The model, whose locks are ordinary layers.
        parameters: All of them.
        images: The records.
        sharing: Whether.
    """
    if not sharing.statistics:
        return {}
    with torch.no_grad():
        return {name: value.detach() for name, value in statistics_after_step(target, parameters, images).items()}


def _of_target(
    target: LeakageTarget, images: Pictures, labels: Int[Tensor, " batch"], sharing: Sharing
) -> SharedUpdate:
    local = None if sharing.local is None else sharing.local(len(images))
    known = dict(target.parameters)
    if local is None:
        found = target.gradients(known, images, labels, sharing.mode)
    else:
        found = weight_difference(target, known, images, labels, local, sharing.mode)
    values = {name: value.detach() for name, value in found.items()}
    return _shared(values, images, labels, sharing, local, statistics_of(target, known, images, sharing))


def _shared(
    values: dict[str, Tensor],
    images: Pictures,
    labels: Int[Tensor, " batch"],
    sharing: Sharing,
    local: LocalTraining | None,
    statistics: dict[str, Tensor],
) -> SharedUpdate:
    return SharedUpdate(
        values,
        n_records=len(images),
        kind="gradient" if local is None else "difference",
        mode=sharing.mode,
        labels=labels.clone() if sharing.tells_labels else None,
        local=local,
        statistics=statistics,
    )
