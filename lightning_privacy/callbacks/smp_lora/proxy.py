"""The proxy attacker h: what it reads of an error, and the network that reads it."""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.smp_lora.functional import calibrated_feature, timestep_features
from lightning_privacy.errors import InputError
from lightning_privacy.protocols import Draw

ProxyInput = Literal["calibrated", "error_map", "pooled_map", "scalar", "multi_t"]
POOL = 8
TIMESTEP_FEATURES = 4

__all__ = ["ProxyInput", "ProxyMLP", "check_features", "read_error", "timestep_share"]


class ProxyMLP(nn.Module):
    """A multilayer perceptron from features to one membership logit.

    Its dropout draws from a generator of its own, so that training it leaves the global random state alone.

    Args:
        in_features: Numbers a record.
        hidden: Widths of the hidden layers (512, 256 in the released code).
        dropout: Share of hidden units dropped (0.5 in the released code, twice).
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...] = (512, 256), dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features, self.dropout = in_features, dropout
        widths = [in_features, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], 1)

    def forward(
        self, features: Float[Tensor, "batch features"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        """Return membership logits.

        Args:
            features: What `read_error` returned.
            generator: Source of dropout; None switches dropout off.

        Raises:
            InputError: the features have another size than those the proxy was built for.
        """
        check_features(self.in_features, features.shape[1])
        x = features
        for layer in self.hidden:
            x = F.relu(layer(x))
            if self.dropout and generator is not None:
                keep = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
                x = x * keep / (1 - self.dropout)
        return self.out(x).squeeze(1)


def check_features(built_for: int, got: int) -> None:
    """Refuse features of another number than a proxy was built for.

    Raises:
        InputError: the numbers differ.
    """
    if got != built_for:
        raise InputError(
            f"SMPLoRA's proxy was built for {built_for} features a record and got {got}: the error maps changed shape "
            "(pictures of several sizes, or resumed with another size?). Use `proxy: pooled_map` or `proxy: calibrated`, "
            "which read maps of any shape, or train on one size."
        )


def timestep_share(draw: Draw | None, error: Float[Tensor, "batch ..."], steps: int = 1000) -> Float[Tensor, " batch"]:
    """Return timesteps as shares of the schedule; zeros for a model without timesteps."""
    if draw is None or draw.timesteps is None:
        return torch.zeros(len(error), device=error.device)
    return draw.timesteps.to(error.device, torch.float32) / steps


def read_error(
    kind: ProxyInput,
    error: Float[Tensor, "batch ..."],
    reference: Float[Tensor, "batch ..."] | None = None,
    draw: Draw | None = None,
) -> Float[Tensor, "batch features"]:
    """Turn errors into what the proxy reads, keeping the graph.

    Args:
        kind: ``error_map`` the whole map (released code); ``pooled_map`` the map pooled to 8 x 8; ``scalar`` its mean;
            ``multi_t`` means of several draws (a record's draws along dimension 1); ``calibrated`` the logarithm of
            its mean over the reference's on the same draw, with the timestep.
        error: Raw error per record.
        reference: Error before fine-tuning on the same draws, for ``calibrated``.
        draw: The draws, for the timestep.
    """
    error = error.float()
    if kind == "error_map":
        return error.reshape(len(error), -1)
    if kind == "pooled_map":
        return F.adaptive_avg_pool2d(error, POOL).flatten(1)
    if kind == "multi_t":
        return error.reshape(*error.shape[:2], -1).mean(2)
    mean = error.reshape(len(error), -1).mean(1)
    if kind == "scalar":
        return mean[:, None]
    if reference is None:
        raise InputError("The proxy input `calibrated` needs the reference's errors; use `proxy: scalar` without them.")
    feature = calibrated_feature(mean, reference.float().reshape(len(error), -1).mean(1))
    return torch.cat([feature[:, None], timestep_features(timestep_share(draw, error), TIMESTEP_FEATURES)], 1)
