"""What reconstructions are compared with: guesses that need no model, retrieval without reconstruction, and the best."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.inversion.autoencoder import train_autoencoder
from lightning_privacy.attacks.inversion.decoder import InversionNetwork
from lightning_privacy.attacks.inversion.flatness import FlatnessRule
from lightning_privacy.attacks.inversion.observing import observe_all
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.tap_scale import TapScale, fit_tap_scale
from lightning_privacy.attacks.inversion.target import Access, FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.errors import InputError

__all__ = ["NearestAux", "RandomDecoder", "autoencoder_ceiling", "class_mean_pictures", "mean_pictures"]


def mean_pictures(
    aux: Float[Tensor, "n channels height width"], victims: int
) -> Float[Tensor, "victims channels height width"]:
    """Return the mean of the attacker's own pictures for every victim: the best guess of one who sees nothing.

    Args:
        aux: Pictures in [0, 1].
        victims: How many.

    Example:
        >>> mean_pictures(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), 3).flatten().tolist()
        [0.5, 0.5, 0.5]
    """
    return aux.mean(0).expand(victims, *aux.shape[1:])


def class_mean_pictures(
    aux: Float[Tensor, "n channels height width"], aux_labels: Int[Tensor, " labelled"], labels: Int[Tensor, " victims"]
) -> Float[Tensor, "victims channels height width"]:
    """Return the mean of the attacker's own pictures of each victim's class: what the true label alone is worth.

    Args:
        aux: Pictures in [0, 1].
        aux_labels: Their classes.
        labels: The victims' classes, which an oracle tells. One without own pictures gets the mean of all.

    Example:
        >>> aux = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
        >>> class_mean_pictures(aux, torch.tensor([0, 0, 1]), torch.tensor([1, 0, 7])).flatten().tolist()
        [1.0, 0.25, 0.5]
    """
    if len(aux) != len(aux_labels):
        raise InputError(
            f"Class means need a label a picture, but got {len(aux)} pictures and {len(aux_labels)} labels."
        )
    means = {int(k): aux[aux_labels == k].mean(0) for k in aux_labels.unique()}
    everything = aux.mean(0)
    return torch.stack([means.get(int(k), everything) for k in labels])


class NearestAux:
    """Name the attacker's own picture whose output is nearest to what leaked: retrieval without reconstruction.

    Distances are taken on the standardised tap. An attack that does no better has learned nothing of the victim beyond
    which known picture it resembles.

    Example:
        >>> target = InversionTarget(lambda x: x.mean((2, 3)), "features", (1, 4, 4))
        >>> own = torch.tensor([0.1, 0.8]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
        >>> attack = NearestAux()
        >>> attack.fit(target, own, own, seed=0).converged
        True
        >>> round(float(attack.reconstruct(target, torch.tensor([[0.7]]), seed=0).mean()), 2)
        0.8
    """

    name: ClassVar[str] = "nearest_aux"
    access: ClassVar[Access] = "queries"

    def __init__(self) -> None:
        self._known: tuple[TapScale, Tensor, Tensor] | None = None

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Remember own pictures and what leaves the model for them.

        Args:
            target: The model.
            aux: Pictures in [0, 1], of which one is named.
            aux_val: Not used.
            seed: Of the noise that a defence draws.
        """
        with own_randomness(seed, self.name, aux.device):
            seen = observe_all(target, aux)
        scale = fit_tap_scale(seen, target.tap)
        self._known = scale, scale(seen).flatten(1), aux
        return FitRecord()

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return the nearest own picture of each victim.

        Args:
            target: The model.
            observed: What leaked.
            seed: Not used.

        Raises:
            InputError: `fit` did not run.
        """
        if self._known is None:
            raise InputError("NearestAux knows no pictures yet; call `fit` before `reconstruct`.")
        scale, seen, pictures = self._known
        return pictures[torch.cdist(scale(observed.float()).flatten(1), seen).argmin(1)]


class RandomDecoder:
    """Apply a decoder that was never trained: what an evaluation whose attacker does not learn would report.

    Args:
        width: Channels inside.
        blocks: Residual blocks.
    """

    name: ClassVar[str] = "random_decoder"
    access: ClassVar[Access] = "queries"

    def __init__(self, width: int = 48, blocks: int = 2) -> None:
        self.width, self.blocks = width, blocks
        self._scale: TapScale | None = None
        self._network: InversionNetwork | None = None

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Draw the weights and measure the scale of the tap.

        Args:
            target: The model.
            aux: Pictures in [0, 1].
            aux_val: Not used.
            seed: Of the weights.
        """
        with own_randomness(seed, self.name, aux.device):
            seen = observe_all(target, aux)
            network = InversionNetwork(seen.shape[1:], target.image_shape, self.width, self.blocks)
        self._network = network.to(aux.device).eval().requires_grad_(False)
        self._scale = fit_tap_scale(seen, target.tap)
        return FitRecord(note="The decoder is random on purpose.")

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return what the random decoder makes of each victim.

        Args:
            target: The model.
            observed: What leaked.
            seed: Not used.

        Raises:
            InputError: `fit` did not run.
        """
        if self._network is None or self._scale is None:
            raise InputError("RandomDecoder has no network yet; call `fit` before `reconstruct`.")
        return self._network(self._scale(observed.float()))


def autoencoder_ceiling(
    aux: Float[Tensor, "n channels height width"],
    aux_val: Float[Tensor, "m channels height width"],
    victims: Float[Tensor, "victims channels height width"],
    seed: int,
    tap_size: int | None = None,
    max_steps: int = 6000,
) -> tuple[Float[Tensor, "victims channels height width"], FitRecord]:
    """Return what the attackers' decoder makes of the victims where nothing was done to hide them.

    With ``tap_size`` below the number of pixel values an encoder is trained together with the decoder: the ceiling of any
    tap that sends so many numbers, as far as the attacker's pictures suffice to find it. Otherwise the encoder is the
    identity: a decoder of the same make that is shown the pictures themselves, hence the ceiling of the decoder.

    Args:
        aux: Pictures in [0, 1] to train on.
        aux_val: Pictures in [0, 1] that say when the loss is flat.
        victims: Pictures in [0, 1]; used only to be encoded and decoded.
        seed: Of the networks.
        tap_size: Numbers that the tap sends a picture; unlimited if not given.
        max_steps: Optimizer steps at most.

    Returns:
        The pictures, and how training went.
    """
    if tap_size is not None and tap_size < math.prod(aux.shape[1:]):
        network, record = train_autoencoder(aux, aux_val, tap_size, seed, rule=FlatnessRule(max_steps=max_steps))
        with torch.no_grad():
            return torch.cat([network(part) for part in victims.split(256)]), record
    itself = InversionTarget(lambda x: x, "split", (aux.shape[1], aux.shape[2], aux.shape[3]))
    attack = TrainedDecoder(max_steps=max_steps)
    record = attack.fit(itself, aux, aux_val, seed)
    return attack.reconstruct(itself, victims, seed), record
