"""Detection networks: torchvision's reference models, and a small Mask R-CNN of its parts."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.weights import PICKLES, load_file_weights

__all__ = ["SMALL", "adapt_heads", "build_detector", "detector_names"]

SMALL = "small_maskrcnn"
_SIZED = ("fasterrcnn", "maskrcnn", "retinanet", "fcos")
"""Families whose pictures are resized to a size of one's choice; SSDs have one of their own."""
_PER_CLASS = ("num_classes", "num_columns")
"""Where torchvision's heads note how many classes they score."""


def detector_names() -> list[str]:
    """Return the networks there are; those of key points need other targets than boxes."""
    from torchvision.models import detection, list_models

    return [SMALL, *(name for name in list_models(module=detection) if "keypoint" not in name)]


def build_detector(
    name: str, classes: int, image_size: int, pretrained: str | None = None, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a network that maps pictures and targets to losses in training mode, and pictures to detections otherwise.

    Args:
        name: One of `detector_names`.
        classes: Without the background, which torchvision counts as class 0.
        image_size: Side of the pictures in pixels.
        pretrained: A ``.safetensors`` file, or a name of torchvision's weights (``DEFAULT``: COCO); None for none. What scores
            other classes is left as built.
        arguments: Further arguments of torchvision's builder, such as ``{weights_backbone: DEFAULT}``.

    Raises:
        InputError: there is no such network, argument or weights.
    """
    from torchvision.models import get_model

    if name not in detector_names():
        raise InputError(f"ImageDetector: there is no network {name!r}; there are {', '.join(detector_names())}.")
    if pretrained is not None and Path(pretrained).suffix.lower() in PICKLES:
        raise InputError(
            f"ImageDetector: `pretrained` is {pretrained}, a pickle, which can run any program when it is opened; convert it "
            "with safetensors.torch.save_file(state_dict, 'weights.safetensors') where you trust it."
        )
    given = dict(arguments or {})
    if name == SMALL:
        network = small_maskrcnn(classes, image_size)
    else:
        sized = {"min_size": image_size, "max_size": image_size} if name.startswith(_SIZED) else {}
        plain = {"weights": None, "weights_backbone": None, **sized}
        try:
            network = get_model(name, **{**plain, "num_classes": classes + 1, **given})
            if pretrained is not None and not pretrained.endswith(".safetensors"):
                network = adapt_heads(get_model(name, **{**plain, **given, "weights": pretrained}), network)
        except (TypeError, ValueError, KeyError) as wrong:
            raise InputError(f"ImageDetector: torchvision cannot build `{name}` so: {wrong}.") from wrong
    if pretrained is not None and pretrained.endswith(".safetensors"):
        load_file_weights(network, pretrained)
    elif pretrained is not None and name == SMALL:
        raise InputError(f"ImageDetector: `{SMALL}` has no weights by name; give a .safetensors file.")
    return network


def adapt_heads(trained: nn.Module, fresh: nn.Module) -> nn.Module:
    """Return a trained network for other classes: layers of another shape are taken from a fresh one, all others stay.

    Args:
        trained: With weights; changed in place.
        fresh: The same network for the wanted classes.

    Example:
        >>> old, new = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 91)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        >>> made = adapt_heads(old, new)
        >>> made[0] is old[0], made[1].out_features
        (True, 3)
    """
    wanted = dict(fresh.named_modules())
    for path, layer in list(trained.named_modules()):
        other = wanted[path]
        for attribute in _PER_CLASS:
            if isinstance(getattr(layer, attribute, None), int):
                setattr(layer, attribute, getattr(other, attribute))
        mine = {name: value.shape for name, value in layer.named_parameters(recurse=False)}
        if mine != {name: value.shape for name, value in other.named_parameters(recurse=False)}:
            parent, _, own = path.rpartition(".")
            setattr(trained.get_submodule(parent), own, copy.deepcopy(other))
    return trained


class _SmallBackbone(nn.Module):
    """Three convolutions to an eighth of the side, normalised by groups: batches of pictures with objects are small."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, self.out_channels)
        layers: list[nn.Module] = []
        for wide, wider in pairwise(widths):
            layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.GroupNorm(8, widths[-1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": self.layers(images)}


def small_maskrcnn(classes: int, image_size: int) -> nn.Module:
    """Return a Mask R-CNN (arXiv 1703.06870) of half a million weights, for pictures of some 100 pixels.

    Args:
        classes: Without the background.
        image_size: Side of the pictures in pixels.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    width = _SmallBackbone.out_channels
    return MaskRCNN(
        _SmallBackbone(),
        min_size=image_size,
        max_size=image_size,
        rpn_anchor_generator=AnchorGenerator(((12, 24, 48),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_detections_per_img=20,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(width * 25, 128),
        box_predictor=FastRCNNPredictor(128, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 10, 2),
        mask_head=MaskRCNNHeads(width, (32, 32), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, classes + 1),
    )
