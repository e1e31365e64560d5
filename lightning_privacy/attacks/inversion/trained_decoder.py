"""The inversion network as an attack: trained on the attacker's own pictures, then shown what leaked of the victims."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.decoder import InversionNetwork
from lightning_privacy.attacks.inversion.flatness import FlatnessRule, train_until_flat
from lightning_privacy.attacks.inversion.observing import answers_alike, observe_all
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.picture_loss import picture_loss
from lightning_privacy.attacks.inversion.tap_scale import TapScale, fit_tap_scale
from lightning_privacy.attacks.inversion.target import Access, FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.views import ObservedViews
from lightning_privacy.errors import InputError

__all__ = ["TrainedDecoder"]


class TrainedDecoder:
    """Train a network that maps what leaves the model to the picture, and apply it to the victims.

    Needs nothing but answers to pictures of its own. The network is the same for every defence; its input is standardised,
    its training ends when the loss on the attacker's validation pictures is flat, and its best weights are kept. Where a
    defence draws noise, observations are drawn anew each epoch.

    Args:
        max_steps: Optimizer steps at most.
        width: Channels inside the network.
        blocks: Its residual blocks.
        ssim_weight: w in MSE + w (1 - SSIM), at least 0.
        lr: First learning rate of Adam.
        batch_size: Pictures a step.
        views: Views of each own picture, at least 1: as it is, then moved and mirrored; 1 moves nothing.
        shift: Largest move in pixels; a sixteenth of the side, at least 1, if not given.
        flip: Mirror half of the moved pictures; wrong for writing.
        rule: When the loss is flat; ``max_steps`` overrides its own.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> target = InversionTarget(lambda x: 1 - x, "split", (1, 8, 8))
        >>> own = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> attack = TrainedDecoder(max_steps=20, width=8, blocks=1)
        >>> attack.fit(target, own[:64], own[64:], seed=0).steps
        20
        >>> attack.reconstruct(target, 1 - own[:2], seed=0).shape
        torch.Size([2, 1, 8, 8])

    Source:
        He, Zhang and Lee, ACSAC 2019 ("inversion network"); Yang et al., CCS 2019, for outputs.
    """

    name: ClassVar[str] = "trained_decoder"
    access: ClassVar[Access] = "queries"

    def __init__(
        self,
        max_steps: int = 6000,  # chosen here, see FlatnessRule
        width: int = 48,  # chosen here, see InversionNetwork
        blocks: int = 2,
        ssim_weight: float | int = 0.02,  # chosen here: on digits the PSNR is that of 0
        lr: float | int = 2e-3,  # chosen here; it falls to a sixteenth where the loss is flat
        batch_size: int = 32,  # chosen here
        views: int = 8,  # chosen here: shown once each in eight epochs
        shift: int | None = None,
        flip: bool = True,
        rule: FlatnessRule | None = None,
    ) -> None:
        if min(width, blocks, batch_size, views) < 1 or not ssim_weight >= 0 or not lr > 0 or (shift or 0) < 0:
            raise InputError(
                "TrainedDecoder needs width, blocks, batch_size and views of at least 1, ssim_weight and shift of at least 0 "
                f"and lr above 0, but got {width=}, {blocks=}, {batch_size=}, {views=}, {ssim_weight=}, {shift=}, {lr=}."
            )
        given = rule or FlatnessRule()
        self.rule = FlatnessRule(max_steps, given.check_every, given.patience, given.gain, given.factor, given.drops)
        self.width, self.blocks, self.ssim_weight, self.lr = width, blocks, ssim_weight, lr
        self.batch_size, self.views, self.shift, self.flip = batch_size, views, shift, flip
        self.network: InversionNetwork | None = None
        self._scale: TapScale | None = None
        self._fitted: tuple[InversionTarget, int, FitRecord] | None = None

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Train the network; a second call for the same target and seed returns what the first did.

        Args:
            target: The model.
            aux: Pictures in [0, 1] to train on.
            aux_val: Pictures in [0, 1] that say when the loss is flat.
            seed: Of first weights, order, moves and the noise that a defence draws.
        """
        if self._fitted is not None and self._fitted[0] is target and self._fitted[1] == seed:
            return self._fitted[2]
        with own_randomness(seed, self.name, aux.device) as generator:
            fixed = answers_alike(target, aux)
            shift = max(1, min(aux.shape[2:]) // 16) if self.shift is None else self.shift
            own = ObservedViews(target, aux, self.views, shift, self.flip, fixed, self.batch_size, generator)
            scale = fit_tap_scale(own.first, target.tap)
            checked = scale(observe_all(target, aux_val))
            network = InversionNetwork(checked.shape[1:], target.image_shape, self.width, self.blocks).to(aux.device)
            network.start_at(aux.mean(0))
            batches = iter(own)

            def loss() -> Tensor:
                observed, pictures = next(batches)
                return picture_loss(network(scale(observed)), pictures, self.ssim_weight).mean()

            def validate() -> float:
                made = _run(network, checked)
                return float(picture_loss(made, aux_val, self.ssim_weight).mean())

            record = train_until_flat(network, loss, validate, self.lr, self.rule)
        self.network, self._scale, self._fitted = network, scale, (target, seed, record)
        return record

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return the network's guess for each victim.

        Args:
            target: The model.
            observed: What leaked.
            seed: Not used; nothing is random.

        Raises:
            InputError: `fit` did not run.
        """
        if self.network is None or self._scale is None:
            raise InputError("TrainedDecoder has no network yet; call `fit` before `reconstruct`.")
        return _run(self.network, self._scale(observed.float()))


@torch.no_grad()
def _run(network: InversionNetwork, scaled: Tensor) -> Tensor:
    return torch.cat([network(part) for part in scaled.split(256)])
