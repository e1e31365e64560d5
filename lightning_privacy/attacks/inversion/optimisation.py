r"""White-box inversion: the picture whose output is nearest to what leaked, :math:`x` in [0, 1].

.. math:: \hat x = \arg\min_x \|z(x) - z\|^2 / \|z\|^2 + \lambda_{tv} TV(x) + \lambda_2 \overline{x^2}
          + \lambda_s \overline{(x - x_0)^2}

:math:`x_0` is where the search started; :math:`\lambda_s` is zero unless the start is a reconstruction worth keeping.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.descent import descend
from lightning_privacy.attacks.inversion.observing import mismatch, observe_all
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.picture_loss import picture_error
from lightning_privacy.attacks.inversion.tap_scale import tap_values
from lightning_privacy.attacks.inversion.target import Access, FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["OptimisationFromDecoder", "PenaltyWeights", "WhiteBoxOptimisation", "total_variation"]

Start = Callable[[InversionTarget, Tensor, int], Tensor]
"""Target, what leaked and a seed -> first pictures, one a victim."""

_FINALISTS = 2  # candidates that get all steps; chosen here
_GAIN = 0.05  # share of the error by which twice the steps must lower it; chosen here: 0.2 dB
_UNSEEN = "Whether more steps would find more was not looked at: `most_steps` allows no doubling."
_EDGE = 0.01  # first pictures keep this distance from 0 and 1, where the sigmoid is flat


@dataclass(frozen=True)
class PenaltyWeights:
    """Weights of the penalties, each at least 0.

    Args:
        variation: Of the mean absolute difference between neighbouring pixels.
        size: Of the mean square.
        start: Of the mean squared distance from the first picture.
    """

    variation: float = 0.0
    size: float = 0.0
    start: float = 0.0


def total_variation(pictures: Float[Tensor, "n channels height width"]) -> Float[Tensor, " n"]:
    """Return the mean absolute difference between neighbouring pixels, down and across.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).tolist()
        [0.5]
    """
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean((1, 2, 3))
    across = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))
    return (down + across) / 2


class WhiteBoxOptimisation:
    """Search the pixels for the picture whose output is what leaked, knowing the model's weights and its defence.

    All victims are searched for in one batch and do not feel each other. The weights of the penalties are those of the
    smallest true error on the attacker's own validation pictures (all candidates for a third of the steps, the best two for
    all of them); the number of steps is then doubled for as long as that lowers the error there. A victim's best restart is
    that of the smallest objective.

    Args:
        steps: Steps of Adam, at least.
        most_steps: Steps at most; where doubling still helps there, the search is said not to have converged.
        restarts: First pictures a victim: the given start, if any, then the attacker's mean picture, then noise.
        lr: First learning rate, on the logits of the pixels.
        variation: Candidates for the weight of total variation.
        size: Candidates for the weight of the mean square.
        stay: Candidates for the weight of the distance from the first picture.
        tuning: Own validation pictures that choose the weights.
        start: First pictures, such as another attack's reconstructions.
        rows: Pictures in one batch at most.
        mechanism: Context under which gradients are taken, such as a surrogate for a defence's threshold.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> target = InversionTarget(lambda x: x.flatten(1) * 2, "split", (1, 4, 4))
        >>> own = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> attack = WhiteBoxOptimisation(steps=100, restarts=1, tuning=2)
        >>> attack.fit(target, own, own, seed=0).converged
        True
        >>> found = attack.reconstruct(target, target.observe(own[:2]), seed=0)
        >>> bool((found - own[:2]).square().mean() < 1e-3)
        True

    Source:
        "rMLE" of He, Zhang and Lee, "Model inversion attacks against collaborative inference", ACSAC 2019.
    """

    name: ClassVar[str] = "white_box_optimisation"
    access: ClassVar[Access] = "white_box"

    def __init__(
        self,
        steps: int = 500,  # chosen here: the shortest of the usual 500 to 2000
        restarts: int = 2,  # chosen here
        lr: float | int = 0.1,  # chosen here
        variation: Sequence[float | int] = (
            0,
            1e-3,
            1e-2,
            1e-1,
            1,
            3,
        ),  # chosen here: faces at a split took 0.1, noise 2
        size: Sequence[float | int] = (0,),
        stay: Sequence[float | int] = (0,),
        tuning: int = 16,  # chosen here
        start: Start | None = None,
        rows: int = 256,  # chosen here: memory
        mechanism: Callable[[InversionTarget], AbstractContextManager[None]] | None = None,
        most_steps: int = 4000,  # chosen here: three doublings
    ) -> None:
        weights = [*variation, *size, *stay]
        if (
            min(steps, restarts, tuning, rows) < 1
            or not lr > 0
            or not (variation and size and stay)
            or min(weights) < 0
        ):
            raise InputError(
                "WhiteBoxOptimisation needs steps, restarts, tuning and rows of at least 1, lr above 0 and at least one "
                f"weight, none below 0, of each penalty, but got {steps=}, {restarts=}, {tuning=}, {rows=}, {lr=}, "
                f"{variation=}, {size=}, {stay=}."
            )
        self.steps, self.restarts, self.lr, self.tuning, self.rows = steps, restarts, lr, tuning, rows
        self.most_steps = max(steps, most_steps)
        self.length = steps
        """Steps that are taken, once `fit` has chosen them."""
        self.candidates = [PenaltyWeights(float(a), float(b), float(c)) for a, b, c in product(variation, size, stay)]
        self.start, self.mechanism = start, mechanism
        self.weights: PenaltyWeights | None = None
        self._mean: Tensor | None = None

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Choose the penalties' weights by the true error on own validation pictures.

        Args:
            target: The model.
            aux: Pictures in [0, 1]; their mean is a first picture.
            aux_val: Pictures in [0, 1] that are reconstructed under every choice of weights, in one batch.
            seed: Of noise.
        """
        began = time.perf_counter()
        self._mean = aux.mean(0)
        if len(self.candidates) == 1 and 2 * self.steps > self.most_steps:
            self.weights, self.length = self.candidates[0], self.steps
            return FitRecord(False, steps=self.steps, note=_UNSEEN)
        own = aux_val[: self.tuning]
        with own_randomness(seed, f"{self.name} tuning", own.device):
            observed = observe_all(target, own)
            first = self._first(target, observed, seed)[0]

            def errors(candidates: Sequence[PenaltyWeights], steps: int) -> Tensor:
                many = len(candidates)
                weights = [w for w in candidates for _ in range(len(own))]
                found, _ = self._search(target, _tiled(observed, many), _tiled(first, many), weights, steps)
                return picture_error(found, _tiled(own, many)).view(many, -1).mean(1)

            left = self.candidates
            if len(left) > _FINALISTS:
                best = errors(left, max(1, self.steps // 3)).topk(_FINALISTS, largest=False).indices.tolist()
                left = [left[k] for k in best]
            reached = errors(left, self.steps)
            self.weights, error = left[int(reached.argmin())], float(reached.min())
            self.length, flat = self.steps, False
            # A search that is not over at its last step is no measure of what can be found.
            while not flat and 2 * self.length <= self.most_steps:
                longer = float(errors([self.weights], 2 * self.length))
                flat = longer > error * (1 - _GAIN)
                if not flat:
                    self.length, error = 2 * self.length, longer
        note = f"Penalties and steps chosen on {len(own)} own pictures: {self.weights}, {self.length} steps."
        return FitRecord(flat, steps=self.length, seconds=time.perf_counter() - began, note=note)

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return each victim's picture of the smallest objective over the restarts.

        Args:
            target: The model.
            observed: What leaked.
            seed: Of first pictures of noise, and of the noise that a defence draws.

        Raises:
            InputError: `fit` did not run.
        """
        if self.weights is None:
            raise InputError("WhiteBoxOptimisation has no weights yet; call `fit` before `reconstruct`.")
        with own_randomness(seed, self.name, observed.device):
            firsts = self._first(target, observed, seed)
            found, objective = self._search(
                target,
                _tiled(observed.float(), len(firsts)),
                torch.cat(firsts),
                [self.weights] * (len(firsts) * len(observed)),
                self.length,
            )
        found, objective = (x.unflatten(0, (len(firsts), -1)) for x in (found, objective))
        return found[objective.argmin(0), torch.arange(len(observed), device=found.device)]

    def _first(self, target: InversionTarget, observed: Tensor, seed: int) -> list[Tensor]:
        if self._mean is None:
            raise InputError("WhiteBoxOptimisation knows no pictures yet; call `fit` before `reconstruct`.")
        shape = (len(observed), *target.image_shape)
        firsts = [] if self.start is None else [self.start(target, observed, seed)]
        firsts += [self._mean.expand(shape)]
        # The same noise for all victims, so that what becomes of one does not depend on who stands beside it.
        drawn = seeded_generator(seed, self.name, "first pictures")
        noise = [torch.rand(target.image_shape, generator=drawn).to(observed.device) for _ in range(self.restarts)]
        firsts += [each.expand(shape) for each in noise]
        return firsts[: self.restarts]

    def _search(
        self, target: InversionTarget, observed: Tensor, first: Tensor, weights: Sequence[PenaltyWeights], steps: int
    ) -> tuple[Tensor, Tensor]:
        table = torch.tensor([[w.variation, w.size, w.start] for w in weights], device=first.device)
        pictures, objectives = [], []
        for z, x0, w in zip(observed.split(self.rows), first.split(self.rows), table.split(self.rows), strict=True):
            wanted = tap_values(z, target.tap)

            def objective(v: Tensor, x0: Tensor = x0, w: Tensor = w, wanted: Tensor = wanted) -> Tensor:
                x = v.sigmoid()
                penalties = torch.stack([total_variation(x), x.square().mean((1, 2, 3)), picture_error(x, x0)], 1)
                return mismatch(tap_values(target.observe(x).float(), target.tap), wanted) + (w * penalties).sum(1)

            begin = x0.clamp(_EDGE, 1 - _EDGE).logit()
            with nullcontext() if self.mechanism is None else self.mechanism(target):
                found = descend(objective, begin, steps, self.lr)
            with torch.no_grad():
                objectives.append(objective(found))
            pictures.append(found.sigmoid())
        return torch.cat(pictures), torch.cat(objectives)


class OptimisationFromDecoder(WhiteBoxOptimisation):
    """White-box optimisation that starts at the trained decoder's output, and may stay near it.

    Shows whether a search that failed from elsewhere was stopped by the defence or by where it began (gradient masking,
    arXiv 1802.00420).

    Args:
        decoder: The trained decoder; one that was fitted for the same target and seed is not trained again.
        stay: Candidates for the weight of the distance from the decoder's output; large ones keep it as it is.
        **options: Arguments of `WhiteBoxOptimisation`.
    """

    name: ClassVar[str] = "optimisation_from_decoder"

    def __init__(
        self,
        decoder: TrainedDecoder | None = None,
        steps: int = 300,  # chosen here: it starts near the end
        restarts: int = 1,
        lr: float | int = 0.05,  # chosen here: larger steps leave the decoder's output at once
        variation: Sequence[float | int] = (0, 1e-2, 1),  # chosen here: noise took 1
        stay: Sequence[float | int] = (
            0,
            0.1,
            1,
            10,
            100,
        ),  # chosen here: mismatches are about 0.1, squared errors 0.01
        tuning: int = 16,
        rows: int = 256,
        mechanism: Callable[[InversionTarget], AbstractContextManager[None]] | None = None,
        most_steps: int = 2400,  # chosen here: three doublings
    ) -> None:
        self.decoder = decoder or TrainedDecoder()
        super().__init__(
            steps=steps,
            restarts=restarts,
            lr=lr,
            variation=variation,
            stay=stay,
            tuning=tuning,
            rows=rows,
            start=self.decoder.reconstruct,
            mechanism=mechanism,
            most_steps=most_steps,
        )

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train the decoder where it is not, then choose the penalties' weights.

        Args:
            target: The model.
            aux: Pictures in [0, 1] to train on.
            aux_val: Pictures in [0, 1] for every choice.
            seed: Of the decoder and of noise.
        """
        trained = self.decoder.fit(target, aux, aux_val, seed)
        chosen = super().fit(target, aux, aux_val, seed)
        return FitRecord(
            trained.converged and chosen.converged,
            trained.history,
            trained.steps,
            trained.seconds + chosen.seconds,
            " ".join(filter(None, (trained.note, chosen.note))),
        )


def _tiled(rows: Tensor, times: int) -> Tensor:
    return rows.repeat(times, *[1] * (rows.ndim - 1))
