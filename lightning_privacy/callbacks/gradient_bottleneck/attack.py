"""The attack that knows the bottleneck: its draw is searched for like the picture, or its layers are left out."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.engine import Round, SearchAttack, search
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget, Secret
from lightning_privacy.attacks.leakage.unknowns import FreeSecrets, NoSecrets
from lightning_privacy.attacks.leakage.update import Mode, SharedUpdate
from lightning_privacy.callbacks.variational_bottleneck.functional import reparameterise
from lightning_privacy.callbacks.variational_bottleneck.layers import GaussianBottleneck
from lightning_privacy.errors import InputError

__all__ = ["LatentSearch", "with_drawn_noise"]

Draw = Callable[[torch.Generator], Mapping[str, Tensor]]


class _GivenNoise(nn.Module):
    """A bottleneck whose noise is a parameter, for as many records as an update is of; other names stay as they were."""

    def __init__(self, layer: GaussianBottleneck, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.mean, self.log_variance = layer.inner, layer.mean, layer.log_variance
        self.noise = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.inner(*args, **kwargs)
        return reparameterise(self.mean(hidden), self.log_variance(hidden), self.noise)


def with_drawn_noise(target: LeakageTarget, n_records: int, mode: Mode = "train") -> LeakageTarget:
    """Return the target with the draws of its variational bottlenecks among its secrets.

    Noise and network are independent, so that the draw of one update is a secret like a key: ``z = mu + sigma e``, with e
    standard normal.

    Args:
        target: The model as it was trained, with any layers of `GaussianBottleneck`; not changed.
        n_records: Records behind the update.
        mode: In which the client computed it; in mode ``eval`` a bottleneck may pass on its mean, and has no draw.

    Raises:
        InputError: No bottleneck draws anything.

    Example:
        >>> from lightning_privacy.attacks.leakage.target import target_of
        >>> from lightning_privacy.callbacks.gradient_bottleneck.layers import BottleneckedHead
        >>> net = nn.Sequential(nn.Flatten(), BottleneckedHead(nn.Linear(16, 3), latents=5))
        >>> {k: s.shape for k, s in with_drawn_noise(target_of(net, (1, 4, 4), 3), n_records=2).secrets.items()}
        {'1.latent.noise': (2, 5)}
    """
    skeleton = copy.deepcopy(target.skeleton)
    layers = {name: m for name, m in skeleton.named_modules() if isinstance(m, GaussianBottleneck)}
    drawing = {n: m for n, m in layers.items() if mode == "train" or m.sample_at_inference}
    if not drawing:
        raise InputError("The model has no bottleneck that draws in this mode, so that there is nothing to search for.")
    shapes = _shapes(replace(target, skeleton=skeleton), drawing, n_records, mode)
    drawn: dict[str, Secret] = {}
    for name, layer in drawing.items():
        parent, _, attribute = name.rpartition(".")
        setattr(skeleton.get_submodule(parent), attribute, _GivenNoise(layer, shapes[name]))
        drawn[f"{name}.noise"] = Secret(shapes[name])
    draw = None if target.secrets and target.draw_secrets is None else partial(_draw, target.draw_secrets, drawn)
    return replace(target, skeleton=skeleton, secrets={**target.secrets, **drawn}, draw_secrets=draw, lock=None)


def _shapes(
    target: LeakageTarget, layers: dict[str, GaussianBottleneck], n: int, mode: Mode
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = tuple(output.shape)

        return hook

    handles = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    secrets = {k: torch.zeros(secret.shape).to(target.device, target.dtype) for k, secret in target.secrets.items()}
    # What the bottleneck draws here is thrown away; the caller's random stream is not to notice.
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []), torch.no_grad():
        pictures = torch.zeros((n, *target.image_shape)).to(target.device, target.dtype)
        target.scores(target.complete(secrets), pictures, mode)
    for handle in handles:
        handle.remove()
    return found


def _draw(others: Draw | None, drawn: Mapping[str, Secret], generator: torch.Generator) -> dict[str, Tensor]:
    noise = {name: torch.randn(secret.shape, generator=generator) for name, secret in drawn.items()}
    return {**(dict(others(generator)) if others is not None else {}), **noise}


@dataclass(frozen=True)
class LatentSearch:
    """Searches for the pictures and for the bottleneck's draw at once.

    The draw of k latents a record hides k numbers, against as many equations as the update has entries.

    Args:
        attack: The search that is extended.
        skip_bottleneck: Whether what the bottleneck's own layers share is left out of the matching.

    Source:
        Leaving out the bottleneck: Scheliga et al., arXiv 2208.04767. Searching for a network's random choices together
        with the pictures: arXiv 2208.06163, there for dropout.
    """

    name: ClassVar[str] = "latent_search"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    attack: SearchAttack = field(default_factory=DeepLeakage)
    skip_bottleneck: bool = False

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the records behind an update; see `LeakageAttack`.

        Raises:
            InputError: The model has no bottleneck, or nothing but bottlenecks was shared.
        """
        view = with_drawn_noise(target, update.n_records, update.mode)
        how = replace(self.attack.plan(), secrets=FreeSecrets() if view.secrets else NoSecrets())
        if self.skip_bottleneck:
            own = {name.removesuffix(".noise") for name in view.secrets if name.endswith(".noise")}
            # What a bottleneck wraps is no part of it.
            heads = tuple(f"{name}.{part}." for name in own for part in ("mean", "log_variance"))
            kept = tuple(name for name in update.values if not name.startswith(heads))
            if not kept:
                raise InputError("Only the bottleneck's layers were shared; there is nothing else to match.")
            how = replace(how, matching=replace(how.matching, layers=kept))
        return search([Round(view, update)], how, self.name, seed)[0]
