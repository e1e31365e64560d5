"""The mathematics of MP-LoRA and SMP-LoRA (arXiv 2402.11989, Luo et al., AAAI 2025), as pure functions.

| symbol | here | meaning |
|---|---|---|
| ``L_ada`` | ``loss`` | adaptation loss of the members, a scalar |
| ``h`` | sigmoid of a logit | proxy attacker's probability that a record is a member |
| ``G`` | ``gain`` | membership-inference gain, at most 0 |
| ``lambda`` | ``strength`` | weight of the gain |
| ``delta`` | ``delta`` | keeps the denominator of SMP-LoRA away from 0 |
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "batch_gain",
    "calibrated_feature",
    "mp_objective",
    "per_sample_gain",
    "proxy_loss",
    "smp_denominator",
    "smp_objective",
    "timestep_features",
    "with_gradient_times",
]


def batch_gain(members: Float[Tensor, " n"], nonmembers: Float[Tensor, " m"] | None = None) -> Float[Tensor, ""]:
    """Return the membership-inference gain G of a batch.

    With non-members it is equation 5, ``(mean log h(member) + mean log(1 - h(non-member))) / 2``; without, the released
    code's members-only form ``mean log h(member)``, which the model can also lower by raising every error.

    Args:
        members: The proxy's logits on members.
        nonmembers: Its logits on non-members.

    Returns:
        A number at most 0; log(1/2) = -0.693 where the proxy guesses.

    Example:
        >>> round(float(batch_gain(torch.zeros(4), torch.zeros(2))), 3)
        -0.693
    """
    gain = F.logsigmoid(members).mean()
    return gain if nonmembers is None else (gain + F.logsigmoid(-nonmembers).mean()) / 2


def per_sample_gain(members: Float[Tensor, " n"], nonmembers: Float[Tensor, " m"] | None = None) -> Float[Tensor, " n"]:
    """Return the gain of each member; its mean is `batch_gain`.

    The non-members' half is the same for every member, so that member i's term depends on no other member.
    """
    gain = F.logsigmoid(members)
    return gain if nonmembers is None else (gain + F.logsigmoid(-nonmembers).mean()) / 2


def proxy_loss(members: Float[Tensor, " n"], nonmembers: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Return what the proxy minimises: minus the two-sided gain, so that classes of unequal size weigh the same."""
    return -batch_gain(members, nonmembers)


def smp_denominator(gain: Float[Tensor, " *shape"], strength: float, delta: float) -> Float[Tensor, " *shape"]:
    """Return ``1 - lambda G + delta``, at least 1 + delta (equation 10)."""
    return 1 - strength * gain + delta


def smp_objective(
    loss: Float[Tensor, " *shape"],
    gain: Float[Tensor, " *shape"],
    strength: float,
    delta: float = 1e-5,
    *,
    global_loss: Float[Tensor, ""] | None = None,
    global_gain: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " *shape"]:
    """Return SMP-LoRA's objective ``L / (1 - lambda G + delta)`` (equation 10).

    A ratio of batch means is not the mean of per-rank ratios. With the means over all ranks, the value returned is the
    global objective and its gradient on this rank, once averaged over ranks, is the global gradient:
    ``grad L_rank / D + lambda L / D^2 grad G_rank`` (appendix D).

    Args:
        loss: Adaptation loss, of this rank.
        gain: Gain, of this rank.
        strength: lambda, at least 0.
        delta: At least 0.
        global_loss: Detached mean of the loss over ranks.
        global_gain: Detached mean of the gain over ranks.

    Example:
        >>> round(float(smp_objective(torch.tensor(0.3), torch.tensor(-0.7), strength=10.0, delta=0.0)), 4)
        0.0375
    """
    if global_loss is None or global_gain is None:
        return loss / smp_denominator(gain, strength, delta)
    denominator = smp_denominator(global_gain, strength, delta)
    surrogate = loss / denominator + strength * global_loss / denominator**2 * gain
    value = global_loss / denominator
    return surrogate + (value - surrogate).detach()


def mp_objective(
    loss: Float[Tensor, " *shape"], gain: Float[Tensor, " *shape"], strength: float
) -> Float[Tensor, " *shape"]:
    """Return MP-LoRA's objective ``L + lambda G`` (equation 6).

    Example:
        >>> round(float(mp_objective(torch.tensor(0.3), torch.tensor(-0.7), strength=0.1)), 4)
        0.23
    """
    return loss + strength * gain


def calibrated_feature(
    error: Float[Tensor, " batch"], reference: Float[Tensor, " batch"], scale: float = 4.0
) -> Float[Tensor, " batch"]:
    """Return ``scale * log(error / reference)``: how much fine-tuning has changed a record's error on one draw.

    Timestep, noise and the record's own difficulty cancel, which leaves the sharpest one-draw signal of membership.

    Args:
        error: Mean error of each record under the model.
        reference: The same draws under the model before fine-tuning.
        scale: Brings the logarithm, a few per cent, to the size of a unit.
    """
    tiny = torch.finfo(error.dtype).tiny
    return scale * (error.clamp_min(tiny).log() - reference.clamp_min(tiny).log())


def timestep_features(timesteps: Float[Tensor, " batch"], features: int = 4) -> Float[Tensor, "batch features"]:
    """Return cosines of the relative timestep, so that a proxy can tell early steps from late ones.

    Args:
        timesteps: In [0, 1].
        features: How many, from half a period up.
    """
    frequencies = torch.arange(1, features + 1, device=timesteps.device, dtype=timesteps.dtype)
    return torch.cos(torch.pi * timesteps[:, None] * frequencies)


def with_gradient_times(value: Float[Tensor, " *shape"], factor: float | int) -> Float[Tensor, " *shape"]:
    """Return the value, bit for bit, with ``factor`` times its gradient.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = with_gradient_times(x, 2)
        >>> y.backward(); y.item(), x.grad.item()
        (3.0, 2.0)
    """
    fixed = value.detach()
    return fixed + factor * (value - fixed)
