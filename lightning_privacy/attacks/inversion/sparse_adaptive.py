r"""Attacks that know a sparse-coding defence: its dictionary and its threshold (the attacker knows the defence).

A sparse code a of a picture s minimises :math:`\frac12\|s - a * \Phi\|^2 + \lambda\|a\|_1`; its synthesis
:math:`\hat s = a * \Phi`, one transposed convolution, undoes the layer up to what :math:`\lambda` removed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.observing import observe_all
from lightning_privacy.attacks.inversion.optimisation import OptimisationFromDecoder, WhiteBoxOptimisation
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.target import Access, FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.errors import InputError

__all__ = ["SurrogateFromDecoder", "SurrogateOptimisation", "SynthesisAttack", "surrogate_thresholds", "synthesise"]

_CHUNK = 128


@contextmanager
def surrogate_thresholds(target: InversionTarget) -> Iterator[None]:
    """Let inactive units pass gradients, in every layer that offers it by a context manager ``surrogate()``.

    The forward pass stays as it is; the gradient of the soft threshold, zero for whatever is inactive, is replaced by that
    of a smooth one. A layer without it keeps its own gradient.

    Args:
        target: The model.

    Source:
        Backward pass differentiable approximation, arXiv 1802.00420, section 4.1.2.
    """
    with ExitStack() as stack:
        for _, layer in target.layers:
            if callable(getattr(layer, "surrogate", None)):
                stack.enter_context(layer.surrogate())
        yield


class SurrogateOptimisation(WhiteBoxOptimisation):
    """White-box optimisation whose gradient sees through the threshold of sparse codes.

    Without it a search may fail because inactive units pass no gradient (gradient masking), which protects nobody.

    Args:
        steps: See `WhiteBoxOptimisation`.
        restarts: See there.
        lr: See there.
        variation: See there.
        tuning: See there.
        rows: See there.
        most_steps: See there.
    """

    name: ClassVar[str] = "surrogate_optimisation"

    def __init__(
        self,
        steps: int = 500,
        restarts: int = 2,
        lr: float | int = 0.1,
        variation: Sequence[float | int] = (0, 1e-3, 1e-2, 1e-1, 1),
        tuning: int = 16,
        rows: int = 256,
        most_steps: int = 4000,
    ) -> None:
        super().__init__(
            steps,
            restarts,
            lr,
            variation,
            tuning=tuning,
            rows=rows,
            mechanism=surrogate_thresholds,
            most_steps=most_steps,
        )


class SurrogateFromDecoder(OptimisationFromDecoder):
    """Optimisation from the trained decoder's output whose gradient sees through the threshold of sparse codes.

    Args:
        decoder: The trained decoder; one that was fitted for the same target and seed is not trained again.
        steps: See `OptimisationFromDecoder`.
        lr: See there.
        variation: See there.
        stay: See there.
        tuning: See there.
        rows: See there.
        most_steps: See there.
    """

    name: ClassVar[str] = "surrogate_from_decoder"

    def __init__(
        self,
        decoder: TrainedDecoder | None = None,
        steps: int = 300,
        lr: float | int = 0.05,
        variation: Sequence[float | int] = (0, 1e-2),
        stay: Sequence[float | int] = (0, 0.1, 1, 10),
        tuning: int = 16,
        rows: int = 256,
        most_steps: int = 2400,
    ) -> None:
        super().__init__(
            decoder,
            steps,
            lr=lr,
            variation=variation,
            stay=stay,
            tuning=tuning,
            rows=rows,
            mechanism=surrogate_thresholds,
            most_steps=most_steps,
        )


def synthesise(layer: Any, code: Float[Tensor, "n atoms height width"]) -> Float[Tensor, "n channels tall wide"]:
    """Return the picture that a sparse code stands for: its transposed convolution with the dictionary.

    Args:
        layer: With ``synthesise(code)``, or with ``dictionary`` (atoms, channels, k, k) and ``stride``; padding is that of
            a convolution that keeps the size at stride 1.
        code: Activations.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(dictionary=torch.full((1, 1, 1, 1), 2.0), stride=1)
        >>> synthesise(layer, torch.ones(1, 1, 2, 2)).flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    own: Callable[[Tensor], Tensor] | None = getattr(layer, "synthesise", None)
    if own is not None:
        return own(code)
    atoms, stride = layer.dictionary.detach(), getattr(layer, "stride", 1)
    step = stride if isinstance(stride, int) else stride[0]
    return F.conv_transpose2d(code, atoms, stride=step, padding=atoms.shape[-1] // 2, output_padding=step - 1)


class SynthesisAttack:
    """Undo sparse-coding layers by their own dictionaries: one transposed convolution a layer, no training.

    What lies between the tap and a layer's code, and between two layers (normalisation, pooling), is undone by a scale and
    a shift a channel, fitted by least squares on own pictures: the attacker runs the layers itself and reads their codes. At
    the end a scale a channel and the mean picture stand for the brightness and contrast that standardisation removed.

    Source:
        The synthesis equation of sparse coding; Rozell et al., Neural Computation 20, 2008.
    """

    name: ClassVar[str] = "synthesis"
    access: ClassVar[Access] = "white_box"

    def __init__(self) -> None:
        self._stages: list[tuple[Any, tuple[int, int], Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def applies(self, target: InversionTarget) -> bool:
        """Return whether the tap is a map of the last dictionary's atoms, and the first dictionary is of pictures.

        Args:
            target: The model, which is asked about one black picture.
        """
        layers = _sparse_layers(target)
        if target.tap != "split" or not layers:
            return False
        place = layers[0].dictionary.device
        with own_randomness(0, self.name, place), torch.no_grad():
            tap, ran = _observe_codes(target, layers, torch.zeros(1, *target.image_shape, device=place))
        if not ran:
            return False
        first, last = ran[0][0].dictionary, ran[-1][0].dictionary
        return tap.ndim == 4 and tap.shape[1] == len(last) and first.shape[1] == target.image_shape[0]

    def fit(
        self,
        target: InversionTarget,
        aux: Float[Tensor, "n channels height width"],
        aux_val: Float[Tensor, "m channels height width"],
        seed: int,
    ) -> FitRecord:
        """Fit scales and shifts on own pictures, in closed form.

        Args:
            target: The model.
            aux: Pictures in [0, 1].
            aux_val: Not used: there is nothing to choose.
            seed: Of the noise that a defence draws.

        Raises:
            InputError: there is no sparse-coding layer, or the tap is no map of as many channels as the last one has atoms.
        """
        began = time.perf_counter()
        layers = _sparse_layers(target)
        if not layers:
            raise InputError("SynthesisAttack needs a layer with a dictionary before the tap; leave the attack out.")
        with own_randomness(seed, self.name, aux.device), torch.no_grad():
            tap, ran = _observe_codes(target, layers, aux)
            if not ran:
                raise InputError(
                    "SynthesisAttack: no sparse-coding layer runs before the tap; leave the attack out, or listen later."
                )
            layers, codes = [layer for layer, _ in ran], [code for _, code in ran]
            atoms = layers[-1].dictionary.shape[0]
            if tap.ndim != 4 or tap.shape[1] != atoms:
                raise InputError(
                    f"SynthesisAttack reads a map of {atoms} channels, one an atom of the last dictionary, but the tap "
                    f"`{target.tap}` has the shape {tuple(tap.shape[1:])}; attack it by the other attacks."
                )
            now, self._stages = tap, []
            for layer, code in zip(reversed(layers), reversed(codes), strict=True):
                size = (code.shape[2], code.shape[3])
                now = _enlarged(now, size)
                scale, shift = _channel_fit(now, code)
                self._stages.append((layer, size, scale, shift))
                now = synthesise(layer, now * scale + shift)
            now = _enlarged(now, (aux.shape[2], aux.shape[3]))
            if now.shape[1] != aux.shape[1]:
                raise InputError(
                    f"SynthesisAttack ends at {now.shape[1]} channels, but pictures have {aux.shape[1]}: the first sparse "
                    "layer must see the picture itself."
                )
            centre, mean = now.mean(0, keepdim=True), aux.mean(0, keepdim=True)
            scale, _ = _channel_fit(now - centre, aux - mean)
            self._last = centre, scale, mean
        return FitRecord(seconds=time.perf_counter() - began)

    def reconstruct(
        self, target: InversionTarget, observed: Float[Tensor, "victims ..."], seed: int
    ) -> Float[Tensor, "victims channels height width"]:
        """Return the synthesis of each victim's code.

        Args:
            target: The model.
            observed: What leaked.
            seed: Not used; nothing is random.

        Raises:
            InputError: `fit` did not run.
        """
        if self._last is None:
            raise InputError("SynthesisAttack has no scales yet; call `fit` before `reconstruct`.")
        centre, gain, mean = self._last
        now = observed.float()
        for layer, size, scale, shift in self._stages:
            now = synthesise(layer, _enlarged(now, size) * scale + shift)
        now = _enlarged(now, (mean.shape[2], mean.shape[3]))
        return ((now - centre) * gain + mean).clamp(0, 1)


def _sparse_layers(target: InversionTarget) -> list[Any]:
    return [layer for _, layer in target.layers if isinstance(layer, nn.Module) and hasattr(layer, "dictionary")]


def _observe_codes(
    target: InversionTarget, layers: Sequence[nn.Module], aux: Tensor
) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
    """Return the tap and the code of every layer that runs before it."""
    caught: list[list[Tensor]] = [[] for _ in layers]

    def catch(kept: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: kept.append(output.detach().float())

    handles = [layer.register_forward_hook(catch(kept)) for layer, kept in zip(layers, caught, strict=True)]
    try:
        tap = observe_all(target, aux, _CHUNK)
    finally:
        for handle in handles:
            handle.remove()
    return tap, [(layer, torch.cat(kept)) for layer, kept in zip(layers, caught, strict=True) if kept]


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest")


def _channel_fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the least squares y = scale x + shift, channel by channel."""
    over = (0, 2, 3)
    mx, my = x.mean(over, keepdim=True), y.mean(over, keepdim=True)
    spread = (x - mx).square().mean(over, keepdim=True)
    scale = ((x - mx) * (y - my)).mean(over, keepdim=True) / spread.clamp_min(1e-12)
    return scale, my - scale * mx
