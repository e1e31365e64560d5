r"""White-box inversion over the latent of an autoencoder of the attacker's own pictures, G.

.. math:: \hat x = G(m + R e), \quad e = \arg\min_e \|z(G(m + R e)) - z\|^2 / \|z\|^2 + \lambda \overline{e^2}

m and :math:`R R^T` are the mean and covariance of the latents of the attacker's own pictures.
"""

import time
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.autoencoder import Autoencoder, LatentSpread, train_autoencoder
from lightning_privacy.attacks.inversion.descent import descend
from lightning_privacy.attacks.inversion.flatness import FlatnessRule
from lightning_privacy.attacks.inversion.observing import mismatch, observe_all
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.picture_loss import picture_error
from lightning_privacy.attacks.inversion.tap_scale import TapScale, fit_tap_scale, tap_values
from lightning_privacy.attacks.inversion.target import Access, FitRecord, InversionTarget
from lightning_privacy.errors import InputError

__all__ = ["LatentOptimisation"]


class LatentOptimisation:
    """Search the latent of an autoencoder for the picture whose output is what leaked.

    The offline counterpart of a search in a generative network's latent: what it finds looks like the attacker's own
    pictures, which is what a tap that has forgotten the details asks for.

    Args:
        latent_dim: Length of the latent.
        steps: Steps of Adam.
        restarts: First latents a victim: the mean, then those of the nearest own pictures at the tap.
        lr: First learning rate, in standard deviations of the latent.
        prior: Candidates for the weight of the mean squared whitened latent; chosen by the true error on own pictures.
        tuning: Own validation pictures that choose it.
        rows: Pictures in one batch at most.
        autoencoder_steps: Optimizer steps of the autoencoder at most.

    Raises:
        InputError: an argument is out of range.

    Source:
        Search over a generator's latent for what a split network sends, "LM" of GLASS (Li et al., NeurIPS 2023).
    """

    name: ClassVar[str] = "latent_optimisation"
    access: ClassVar[Access] = "white_box"

    def __init__(
        self,
        latent_dim: int = 64,  # chosen here
        steps: int = 200,  # chosen here
        restarts: int = 3,  # chosen here
        lr: float | int = 0.1,  # chosen here
        prior: Sequence[float | int] = (1e-4, 1e-3, 1e-2, 1e-1),  # chosen here
        tuning: int = 16,
        rows: int = 256,
        autoencoder_steps: int = 6000,
    ) -> None:
        if (
            min(latent_dim, steps, restarts, tuning, rows, autoencoder_steps) < 1
            or not lr > 0
            or min(prior, default=-1) < 0
        ):
            raise InputError(
                "LatentOptimisation needs latent_dim, steps, restarts, tuning, rows and autoencoder_steps of at least 1, lr "
                f"above 0 and at least one prior weight, none below 0, but got {latent_dim=}, {steps=}, {restarts=}, "
                f"{tuning=}, {rows=}, {autoencoder_steps=}, {lr=}, {prior=}."
            )
        self.latent_dim, self.steps, self.restarts, self.lr = latent_dim, steps, restarts, lr
        self.candidates = [float(weight) for weight in prior]
        self.tuning, self.rows, self.autoencoder_steps = tuning, rows, autoencoder_steps
        self.weight: float | None = None
        self._trained: tuple[Tensor, int, Autoencoder, FitRecord] | None = None
        self._autoencoder: Autoencoder | None = None
        self._spread: LatentSpread | None = None
        self._own: tuple[TapScale, Tensor, Tensor] | None = None

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train the autoencoder, once for all targets as it does not see the model, and choose the weight of the prior.

        Args:
            target: The model.
            aux: Pictures in [0, 1] to train on.
            aux_val: Pictures in [0, 1] for every choice.
            seed: Of the autoencoder.
        """
        rule = FlatnessRule(max_steps=self.autoencoder_steps)
        if self._trained is None or self._trained[0] is not aux or self._trained[1] != seed:
            self._trained = aux, seed, *train_autoencoder(aux, aux_val, self.latent_dim, seed, rule=rule)
        network, record = self._trained[2:]
        began = time.perf_counter()
        spread = network.spread(aux)
        self._autoencoder, self._spread = network, spread
        with own_randomness(seed, f"{self.name} tuning", aux.device):
            seen = observe_all(target, aux)
            scale = fit_tap_scale(seen, target.tap)
            with torch.no_grad():
                latents = torch.cat([network.encode(part) for part in aux.split(256)])
            white = torch.linalg.solve_triangular(spread.root, (latents - spread.mean).T, upper=False).T
            self._own = scale, scale(seen).flatten(1), white
            own = aux_val[: self.tuning]
            many = len(self.candidates)
            observed = observe_all(target, own).repeat(many, *[1] * (seen.ndim - 1))
            weights = torch.tensor(self.candidates, device=aux.device).repeat_interleave(len(own))
            found, _ = self._search(target, observed, self._first(observed)[0], weights)
            error = picture_error(found, own.repeat(many, 1, 1, 1)).view(many, -1).mean(1)
        self.weight = self.candidates[int(error.argmin())]
        note = f"Prior weight {self.weight:g} chosen on {len(own)} own pictures."
        return FitRecord(
            record.converged,
            record.history,
            record.steps,
            record.seconds + time.perf_counter() - began,
            " ".join(filter(None, (record.note, note))),
        )

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return each victim's picture of the smallest objective over the restarts.

        Args:
            target: The model.
            observed: What leaked.
            seed: Of the noise that a defence draws.

        Raises:
            InputError: `fit` did not run.
        """
        if self.weight is None:
            raise InputError("LatentOptimisation has no autoencoder yet; call `fit` before `reconstruct`.")
        with own_randomness(seed, self.name, observed.device):
            firsts = self._first(observed.float())
            rows = observed.float().repeat(len(firsts), *[1] * (observed.ndim - 1))
            weights = torch.full((len(rows),), self.weight, device=rows.device)
            found, objective = self._search(target, rows, torch.cat(firsts), weights)
        found, objective = (x.unflatten(0, (len(firsts), -1)) for x in (found, objective))
        return found[objective.argmin(0), torch.arange(len(observed), device=found.device)]

    def _first(self, observed: Tensor) -> list[Tensor]:
        if self._own is None:
            raise InputError("LatentOptimisation knows no pictures yet; call `fit` before `reconstruct`.")
        scale, seen, white = self._own
        distance = torch.cdist(scale(observed).flatten(1), seen)
        nearest = distance.topk(min(self.restarts, len(seen)), largest=False).indices
        # The mean comes second: a tap that says anything at all makes the nearest picture the better start.
        firsts = [white[nearest[:, 0]], torch.zeros(len(observed), self.latent_dim, device=white.device)]
        firsts += [white[nearest[:, k]] for k in range(1, nearest.shape[1])]
        return firsts[: self.restarts]

    def _search(
        self, target: InversionTarget, observed: Tensor, first: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self._autoencoder is None or self._spread is None:
            raise InputError("LatentOptimisation has no autoencoder yet; call `fit` before `reconstruct`.")
        network, spread = self._autoencoder, self._spread
        pictures, objectives = [], []
        for z, e0, w in zip(observed.split(self.rows), first.split(self.rows), weights.split(self.rows), strict=True):
            wanted = tap_values(z, target.tap)

            def drawn(e: Tensor) -> Tensor:
                return network.decode(spread.mean + e @ spread.root.T)

            def objective(e: Tensor, w: Tensor = w, wanted: Tensor = wanted) -> Tensor:
                produced = tap_values(target.observe(drawn(e)).float(), target.tap)
                return mismatch(produced, wanted) + w * e.square().mean(1)

            found = descend(objective, e0, self.steps, self.lr)
            with torch.no_grad():
                objectives.append(objective(found))
                pictures.append(drawn(found))
        return torch.cat(pictures), torch.cat(objectives)
