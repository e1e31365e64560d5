"""Running statistics of batch normalisation after one step, as a function of the pictures."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.target import LeakageTarget

__all__ = ["statistics_after_step"]


def statistics_after_step(
    target: LeakageTarget, parameters: Mapping[str, Tensor], images: Float[Tensor, "batch channels height width"]
) -> dict[str, Tensor]:
    """Return the running means and variances that one training step on pictures leaves behind; differentiable.

    Sharing them gives back what batch normalisation hides of a picture: brightness and contrast.

    Args:
        target: The model, with its running statistics before the step.
        parameters: Every parameter.
        images: The pictures.

    Returns:
        Buffer name -> value, for batch normalisation with running statistics and a fixed momentum.

    Source:
        torch.nn.BatchNorm2d; as a leak arXiv 2112.00059, section 3.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in target.skeleton.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        if layer.running_mean is None or layer.momentum is None:
            continue

        def note(
            layer: nn.Module,
            inputs: tuple[Tensor, ...],
            prefix: str = f"{name}." if name else "",
            share: float = layer.momentum,
        ) -> None:
            if not layer.training:  # a frozen part that stays in evaluation mode
                return
            seen = inputs[0].transpose(0, 1).flatten(1)
            values = {"running_mean": seen.mean(1), "running_var": seen.var(1)}
            for key, value in values.items():
                found[prefix + key] = (1 - share) * target.buffers[prefix + key] + share * value

        hooks.append(layer.register_forward_pre_hook(note))
    try:
        target.scores(parameters, images, "train")
    finally:
        for hook in hooks:
            hook.remove()
    return found
