"""A search among pictures that a decoder, trained on pictures of the attacker's own, can make."""

import copy
import time
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lightning_privacy.attacks.inversion.target import FitRecord
from lightning_privacy.attacks.leakage.decoder import PictureDecoder
from lightning_privacy.attacks.leakage.engine import Round, Search, search
from lightning_privacy.attacks.leakage.lbfgs import LBFGS
from lightning_privacy.attacks.leakage.matching import Matching
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.unknowns import NoSecrets, Pictures, Variables
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["DecodedPictures", "LatentSearch"]

_SMALLEST_GAIN = 1e-5  # mean squared error of the pictures that counts as still falling


class DecodedPictures:
    """Pictures as what a fixed decoder makes of codes, which a normal prior holds near those of real pictures.

    Args:
        decoder: Codes of mean 0 and variance 1 -> pictures.
        weight: Of the prior.
    """

    def __init__(self, decoder: PictureDecoder, weight: float | int) -> None:
        self.decoder, self.weight = decoder, weight

    def start(self, target: LeakageTarget, n: int, generator: torch.Generator) -> Variables:
        """Return a random code a picture.

        Raises:
            InputError: The decoder was trained on pictures of another size.
        """
        if self.decoder.image_shape != target.image_shape:
            raise InputError(
                f"The decoder makes pictures of shape {self.decoder.image_shape}, but the model takes {target.image_shape}; "
                "fit it on pictures like the victims'."
            )
        return {"codes": 0.5 * torch.randn(n, self.decoder.code, generator=generator)}

    def pictures(self, variables: Variables) -> Pictures:
        """Return what the decoder makes of the codes."""
        codes = variables["codes"]
        weights = {name: value.detach().to(codes) for name, value in self.decoder.named_parameters()}
        return functional_call(self.decoder, weights, (codes,))

    def confine(self, variables: Variables) -> Variables:
        """Return the codes: the prior holds them."""
        return variables

    def penalty(self, variables: Variables) -> Float[Tensor, ""]:
        """Return the weighted mean square of the codes."""
        return self.weight * variables["codes"].square().mean()


class LatentSearch:
    """Learns an autoencoder on pictures of the attacker's own, then searches for codes whose picture causes the update.

    It cannot return what the decoder cannot make, but needs far fewer equations than pixels: it is for updates that are
    withheld in part, perturbed, or of many records. GGL searches in the space of a large generator without gradients; here
    the generator is small and the search uses gradients.

    Args:
        code: Length of the code.
        width: Channels of the decoder.
        evaluations: Evaluations of the update in a search.
        restarts: Random codes.
        prior: Weight of the normal prior, as a share of the distance at the start.
        epochs: Where training stops although the validation error still falls; the fit then counts as not converged.
        patience: Epochs without a lower validation error after which training stops.
        tolerance: Share of the distance at the start below which a flat search counts as converged.

    Source:
        GGL, Li, Zhang, Liu and Liu, arXiv 2203.15696, section 3.
    """

    name: ClassVar[str] = "latent"
    access: ClassVar[str] = "public weights, pictures like the victims' and one update"
    estimates_secrets: ClassVar[bool] = False

    def __init__(
        self,
        code: int = 64,
        width: int = 32,
        evaluations: int = 300,
        restarts: int = 4,
        prior: float | int = 1e-4,  # chosen here
        epochs: int = 200,
        patience: int = 10,
        tolerance: float | int = 1e-2,  # chosen here: no decoder makes the victim exactly
    ) -> None:
        self.code, self.width, self.evaluations, self.restarts = code, width, evaluations, restarts
        self.prior, self.epochs, self.patience, self.tolerance = prior, epochs, patience, tolerance
        self.decoder: PictureDecoder | None = None

    def fit(
        self,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train the autoencoder until the error on ``aux_val`` is flat; see `AuxiliaryAttack`."""
        began, (channels, height, width) = time.perf_counter(), aux.shape[1:]
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.default_generator.manual_seed(derive_seed(seed, self.name))
            decoder = PictureDecoder((channels, height, width), self.code, self.width)
            encoder = nn.Sequential(nn.Flatten(), nn.Linear(aux[0].numel(), 256), nn.SiLU(), nn.Linear(256, self.code))
            # Without an affine, so that codes have mean 0 and variance 1 over the attacker's pictures.
            encoder.append(nn.BatchNorm1d(self.code, affine=False))
            pair = nn.Sequential(encoder, decoder).to(aux.device)
            steps, history, flat = self._train(
                pair, aux.detach().clone().float(), aux_val.detach().clone().float(), seed
            )
        self.decoder = decoder.eval().requires_grad_(False)
        return FitRecord(flat, tuple(history), steps, time.perf_counter() - began)

    def _train(
        self, pair: nn.Module, aux: Tensor, val: Tensor, seed: int
    ) -> tuple[int, list[tuple[float, float]], bool]:
        generator = seeded_generator(seed, self.name, "batches")
        optimizer = torch.optim.Adam(pair.parameters(), lr=2e-3)  # chosen here
        best, best_epoch, state, history, steps = float("inf"), 0, copy.deepcopy(pair.state_dict()), [], 0
        flat = False
        for epoch in range(self.epochs):
            pair.train()
            total = 0.0
            batches = torch.randperm(len(aux), generator=generator).split(64)
            for rows in batches:
                if len(rows) < 2:  # one record has no variance
                    continue
                optimizer.zero_grad()
                loss = F.mse_loss(pair(aux[rows.to(aux.device)]), aux[rows.to(aux.device)])
                loss.backward()
                optimizer.step()
                total, steps = total + loss.item(), steps + 1
            with torch.no_grad():
                error = F.mse_loss(pair.eval()(val), val).item()
            history.append((total / len(batches), error))
            if error < best - _SMALLEST_GAIN:
                best, best_epoch, state = error, epoch, copy.deepcopy(pair.state_dict())
            elif epoch - best_epoch >= self.patience:
                flat = True
                break
        pair.load_state_dict(state)
        return steps, history, flat

    def plan(self) -> Search:
        """Return the search.

        Raises:
            InputError: `fit` was not called.
        """
        if self.decoder is None:
            raise InputError(
                "latent.reconstruct was called before latent.fit; fit it on pictures of the attacker's own."
            )
        return Search(
            DecodedPictures(self.decoder, self.prior),
            NoSecrets(),
            Matching("l2"),
            LBFGS(self.evaluations),
            self.restarts,
            self.tolerance,
            torch.float64,
        )

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`."""
        return search([Round(target, update)], self.plan(), self.name, seed)[0]
