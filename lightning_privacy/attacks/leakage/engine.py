"""Gradient matching: a search for pictures, labels and secrets under which the model makes the update that was shared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from lightning_privacy.attacks.leakage.labels import infer_labels
from lightning_privacy.attacks.leakage.local_steps import simulated_update
from lightning_privacy.attacks.leakage.matching import Matching, relative_error, total_variation
from lightning_privacy.attacks.leakage.optimiser import Minimiser, Objective, Trace
from lightning_privacy.attacks.leakage.recovered import LeakageAttack, Recovered
from lightning_privacy.attacks.leakage.statistics import statistics_after_step
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import PictureModel, SecretModel, Variables
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["EXACT", "Round", "Search", "SearchAttack", "search"]

EXACT = 1e-16  # share of the distance at the start below which only rounding is left, whether it still falls or not
_BATCHING = ("vmap", "batching rule", "functorch", "data-dependent")


@dataclass(frozen=True)
class Round:
    """One observation: the model as it was sent out, and the update that came back."""

    target: LeakageTarget
    update: SharedUpdate


@dataclass(frozen=True)
class Search:
    """How a search is done.

    Args:
        pictures: Parametrisation of the pictures.
        secrets: Parametrisation of the secrets.
        matching: What is minimised.
        minimiser: By which algorithm.
        restarts: Random starts; the one with the lowest matching loss is returned.
        tolerance: Share of the distance at the start below which the search counts as converged once it has stopped
            falling. A share, because distances differ by orders of magnitude between networks.
        precision: Floating-point type of the search.
        statistics_weight: Weight of shared running statistics beside the update; none are matched where none are shared.
    """

    pictures: PictureModel
    secrets: SecretModel
    matching: Matching
    minimiser: Minimiser
    restarts: int = 4
    tolerance: float | int = 1e-4  # chosen here: wrong secrets end above it, true ones below (LeNet, 32 pixels)
    precision: torch.dtype = torch.float64
    statistics_weight: float | int = 1e-3  # chosen here: it fixes what the gradient leaves open and no more


@runtime_checkable
class SearchAttack(LeakageAttack, Protocol):
    """An attack that is a search, so that an attack on secrets can change what it searches over."""

    def plan(self) -> Search:
        """Return the search."""
        ...


def search(rounds: Sequence[Round], how: Search, name: str, seed: int) -> list[Recovered]:
    """Return the records behind each round's update, found together if the rounds share secrets.

    Args:
        rounds: Observations of one client, whose secrets are the same in all of them.
        how: The search.
        name: Of the attack, for the random numbers.
        seed: Of all that is random.

    Raises:
        InputError: There is no round.
    """
    if not rounds:
        raise InputError(f"`{name}` was given no update; observe at least one round.")
    # An audit may run without gradients or in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        views = [_View(r, how, seed) for r in rounds]
        starts = [_start(views, how, seeded_generator(seed, name, r)) for r in range(how.restarts)]
        place = views[0].target
        start = {k: torch.stack([s[k] for s in starts]).to(place.device, how.precision) for k in starts[0]}

        def terms(variables: Variables) -> tuple[Float[Tensor, " rounds"], Float[Tensor, ""]]:
            found = [view.terms(variables, i) for i, view in enumerate(views)]
            return torch.stack([data for data, _ in found]), torch.stack([prior for _, prior in found]).sum()

        with torch.no_grad():
            for i, view in enumerate(views):
                at = [view.terms({k: v[r] for k, v in start.items()}, i)[0] for r in range(how.restarts)]
                view.scale = float(torch.stack(at).mean())

        def single(variables: Variables) -> Float[Tensor, ""]:
            data, prior = terms(variables)
            return data.sum() + prior

        objective, together = _side_by_side(single, start)
        trace = how.minimiser.minimise(objective, start, _confine(how.pictures, len(views)))
        with torch.no_grad():
            each = [terms({k: v[r] for k, v in trace.variables.items()})[0] for r in range(how.restarts)]
        note = "" if together else "restarts ran one after another: a layer of the model cannot be batched"
        return _outcome(views, how, trace, torch.stack(each), note)


class _View:
    """One round in the search's precision, with the labels that the attacker settled on."""

    def __init__(self, observed: Round, how: Search, seed: int) -> None:
        self.target, self.how = observed.target.to(how.precision), how
        self.update = observed.update.to(how.precision, observed.target.device)
        labels = self.update.labels
        self.scale = 1.0
        """Distance at the start, which weighs the priors."""
        self.statistics = {} if self.update.mode == "eval" or self.update.kind != "gradient" else self.update.statistics
        self.statistics_weight = how.statistics_weight
        self.labels = infer_labels(self.target, self.update, seed) if labels is None else labels

    def classes(self, own: Variables) -> Tensor:
        return own["labels"].softmax(-1) if self.labels is None else self.labels

    def own(self, variables: Variables, index: int) -> Variables:
        mine = f"{index}/"
        return {name.removeprefix(mine): value for name, value in variables.items() if name.startswith(mine)}

    def caused(self, variables: Variables, index: int) -> dict[str, Tensor]:
        own = self.own(variables, index)
        parameters = self.target.complete(self.how.secrets.secrets(self.target, variables))
        pictures = self.how.pictures.pictures(own)
        made = simulated_update(self.target, parameters, pictures, self.classes(own), self.update)
        return {name: value.detach() for name, value in made.items()}

    def terms(self, variables: Variables, index: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        own = self.own(variables, index)
        pictures = self.how.pictures.pictures(own)
        parameters = self.target.complete(self.how.secrets.secrets(self.target, variables))
        found = simulated_update(self.target, parameters, pictures, self.classes(own), self.update)
        prior, matching = self.scale * self.how.pictures.penalty(own), self.how.matching
        if matching.total_variation:
            weight = matching.total_variation * matching.prior_unit(self.scale)
            prior = prior + weight * total_variation(pictures)
        data = self.how.matching.data_term(found, self.update.values)
        if self.statistics:
            data = data + self._statistics_term(parameters, pictures)
        return data, prior

    def _statistics_term(self, parameters: Mapping[str, Tensor], pictures: Tensor) -> Float[Tensor, ""]:
        found = statistics_after_step(self.target, parameters, pictures)
        before = {name: self.target.buffers[name] for name in self.statistics}
        # What the step changed: the statistics before it are the same on both sides.
        ours, theirs = ({name: x[name] - before[name] for name in before} for x in (found, self.statistics))
        return self.statistics_weight * relative_error(ours, theirs, tuple(before))


def _start(views: list[_View], how: Search, generator: torch.Generator) -> Variables:
    variables = dict(how.secrets.start(views[0].target, generator))
    for index, view in enumerate(views):
        n = view.update.n_records
        own = how.pictures.start(view.target, n, generator)
        if view.labels is None:
            own["labels"] = torch.randn(n, view.target.classes, generator=generator, dtype=torch.float64)
        variables |= {f"{index}/{name}": value.double() for name, value in own.items()}
    return variables


def _side_by_side(single: Callable[[Variables], Tensor], start: Variables) -> tuple[Objective, bool]:
    """Return the objective of all restarts, and whether they are computed as one batch."""

    def one_by_one(variables: Variables) -> Float[Tensor, " restarts"]:
        restarts = len(next(iter(variables.values())))
        return torch.stack([single({k: v[r] for k, v in variables.items()}) for r in range(restarts)])

    if len(next(iter(start.values()))) == 1:
        return one_by_one, True
    batched = vmap(single)
    try:
        probe = {name: value[:2].clone().requires_grad_() for name, value in start.items()}
        torch.autograd.grad(batched(probe).sum(), list(probe.values()))
    except RuntimeError as error:
        if not any(word in str(error) for word in _BATCHING):
            raise
        return one_by_one, False
    return batched, True


def _confine(pictures: PictureModel, rounds: int) -> Callable[[Variables], Variables]:
    def confine(variables: Variables) -> Variables:
        moved = dict(variables)
        for index in range(rounds):
            mine = f"{index}/"
            own = {k.removeprefix(mine): v for k, v in variables.items() if k.startswith(mine)}
            moved |= {f"{mine}{name}": value for name, value in pictures.confine(own).items()}
        return moved

    return confine


@torch.no_grad()
def _outcome(
    views: list[_View], how: Search, trace: Trace, losses: Float[Tensor, "restarts rounds"], note: str
) -> list[Recovered]:
    total = losses.sum(1).nan_to_num(torch.inf)
    chosen = int(total.argmin())
    variables = {name: value[chosen] for name, value in trace.variables.items()}
    every = max(1, trace.evaluations // max(1, len(trace.history) - 1))
    history = tuple((i * every, float(loss)) for i, loss in enumerate(trace.history[:, chosen]))
    found = []
    for index, view in enumerate(views):
        own = view.own(variables, index)
        soft = view.classes(own)
        labels: Int[Tensor, " records"] = soft.argmax(-1) if view.labels is None else view.labels
        loss = float(losses[chosen, index])
        notes = [*view.target.notes, *([note] if note else [])]
        found.append(
            Recovered(
                how.pictures.pictures(own).clamp(0, 1).float().cpu(),
                labels.cpu(),
                matching_loss=loss,
                start_loss=view.scale,
                converged=loss <= EXACT * view.scale
                or (loss <= how.tolerance * view.scale and bool(trace.flat[chosen])),
                flat=bool(trace.flat[chosen]),
                restarts=tuple(float(x) for x in losses[:, index]),
                history=history,
                secrets={k: v.cpu() for k, v in how.secrets.secrets(view.target, variables).items()},
                caused=view.caused(variables, index),
                evaluations=trace.evaluations,
                note="; ".join(notes),
            )
        )
    return found
