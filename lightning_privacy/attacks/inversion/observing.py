"""Asking the attacked model: in pieces that fit memory, without gradients, and whether it answers twice alike."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.target import InversionTarget
from lightning_privacy.errors import InputError

__all__ = ["answers_alike", "mismatch", "observe_all"]

_CHUNK = 128  # pictures at a time; chosen here: a sparse-coding layer at 64 pixels then stays under 1 GiB
_SMALLEST = 1e-12  # of the squared size of an observation: a tap that is all zero has no scale


@torch.no_grad()
def observe_all(
    target: InversionTarget, pictures: Float[Tensor, "n channels height width"], chunk: int = _CHUNK
) -> Float[Tensor, "n ..."]:
    """Return what leaves the model for each picture, in float32 and without gradients.

    Args:
        target: The model.
        pictures: Values in [0, 1].
        chunk: Pictures at a time.

    Raises:
        InputError: there is no picture, or what leaves is not finite.

    Example:
        >>> target = InversionTarget(lambda x: x.flatten(1) * 2, "split", (1, 2, 2))
        >>> observe_all(target, torch.ones(3, 1, 2, 2)).shape
        torch.Size([3, 4])
    """
    if not len(pictures):
        raise InputError("An inversion attack needs pictures of the attacker's own, but was given none.")
    found = torch.cat([target.observe(part).float() for part in pictures.split(chunk)])
    if not found.isfinite().all():
        raise InputError(
            f"What leaves the model at the tap `{target.tap}` holds NaN or infinity; repair the model first."
        )
    return found


def answers_alike(target: InversionTarget, pictures: Float[Tensor, "n channels height width"]) -> bool:
    """Return whether the model answers bit for bit alike when asked twice; a defence that draws noise does not.

    Args:
        target: The model.
        pictures: A few pictures in [0, 1].
    """
    some = pictures[:4]
    return torch.equal(observe_all(target, some), observe_all(target, some))


def mismatch(
    produced: Float[Tensor, "victims ..."], observed: Float[Tensor, "victims ..."]
) -> Float[Tensor, " victims"]:
    r"""Return :math:`\|z(\hat x) - z\|^2 / \|z\|^2` of each victim: how well a guess explains what leaked.

    Args:
        produced: What the model makes of the guesses.
        observed: What leaked.

    Example:
        >>> mismatch(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])).tolist()
        [0.5]

    Source:
        The objective of white-box inversion, He, Zhang and Lee, ACSAC 2019.
    """
    wrong = (produced - observed).flatten(1).square().sum(1)
    return wrong / observed.flatten(1).square().sum(1).clamp_min(_SMALLEST)
