"""An object detector, or instance segmenter, as a LightningModule."""

import inspect
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_privacy.core.batches import images_of, targets_of
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.detection import DetectionScores

__all__ = ["ImageDetector"]

Objects = list[dict[str, Tensor]]


class ImageDetector(L.LightningModule):
    """Train a network of torchvision's to find objects in pictures, and their outlines where it has masks.

    Batches are ``{"image": (batch, 3, height, width) in [0, 1], "target": one mapping a picture}`` or ``(pictures, targets)``.
    A target has ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``labels`` (n) from 0, and for masks ``masks`` (n, height,
    width). A picture without objects has n = 0. Validation and test log COCO's average precision.

    Args:
        network: ``small_maskrcnn`` (minutes on a CPU), or a detection network of torchvision such as
            ``maskrcnn_resnet50_fpn``, ``fasterrcnn_mobilenet_v3_large_320_fpn`` or ``retinanet_resnet50_fpn``.
        classes: Number of classes, without a background.
        image_size: Side of the pictures in pixels.
        network_args: Further arguments of torchvision's builder, such as ``{weights_backbone: DEFAULT}``.
        pretrained: Weights to start from: a ``.safetensors`` file, or a name of torchvision's such as ``DEFAULT`` (COCO),
            which are downloaded. What scores other classes is left as built. Pickles are refused.
        optimizer: Builds the optimizer from parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer, advanced every step.

    Raises:
        InputError: A value is out of its range, or there is no such network.

    Example:
        >>> module = ImageDetector("small_maskrcnn", classes=2, image_size=64)
        >>> module.configure_model()
        >>> sorted(module.eval().detections(torch.zeros(1, 3, 64, 64))[0])
        ['boxes', 'labels', 'masks', 'scores']
    """

    # Set by `configure_model`; None before.
    network: Any

    def __init__(
        self,
        network: str = "small_maskrcnn",
        classes: int = 80,
        image_size: int = 96,
        network_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        # chosen here: learns with every one of the networks; torchvision's references use SGD and a warm-up
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-4, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if classes < 1 or image_size < 1:
            raise InputError(f"ImageDetector needs classes >= 1 and image_size >= 1, but got {classes}, {image_size}.")
        self.network_name, self.network_args, self.pretrained = network, dict(network_args or {}), pretrained
        self.classes, self.image_size = classes, image_size
        # A lambda shows its arguments to the command line, but does not pickle.
        default = inspect.signature(ImageDetector.__init__).parameters["optimizer"].default
        self.optimizer = partial(torch.optim.AdamW, lr=2e-4, weight_decay=1e-2) if optimizer is default else optimizer
        self.lr_scheduler, self.network = lr_scheduler, None
        self.scores: DetectionScores | None = None

    def configure_model(self) -> None:
        """Build the network, once, with weights that are a function of the global seed alone; load ``pretrained``."""
        if self.network is not None:
            return
        from lightning_privacy.modules.networks.detectors import build_detector

        seed = derive_seed("detector", torch.initial_seed())
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.network = build_detector(
                self.network_name, self.classes, self.image_size, self.pretrained, self.network_args
            ).to(self.device)

    @property
    def has_masks(self) -> bool:
        """Whether the network outlines what it finds."""
        return "mask" in self.network_name

    # ---- what defences and audits ask for

    def losses(self, batch: Any) -> dict[str, Float[Tensor, ""]]:
        """Return the parts of torchvision's training loss of a batch.

        Raises:
            InputError: A target lacks what the network needs, or a label is none of the classes.
        """
        images, targets = images_of(batch), targets_of(batch)
        self._check(images, targets)
        shifted = [{**target, "labels": target["labels"].long() + 1} for target in targets]  # 0 is the background there
        was = self.network.training
        self.network.train()
        try:
            return self.network(list(images), shifted)
        finally:
            self.network.train(was)

    def batch_loss(self, batch: Any) -> Float[Tensor, ""]:
        """Return what training minimises, of a batch with whatever pictures and targets."""
        return torch.stack([part.float() for part in self.losses(batch).values()]).sum()

    @torch.no_grad()
    def detections(self, images: Float[Tensor, "batch 3 height width"]) -> Objects:
        """Return what is found in pictures: ``boxes``, ``labels`` from 0, ``scores``, and ``masks`` (n, height, width).

        Args:
            images: Values in [0, 1].
        """
        was = self.network.training
        self.network.eval()
        try:
            found = self.network(list(images.float()))
        finally:
            self.network.train(was)
        for each in found:
            each["labels"] = each["labels"] - 1
            if "masks" in each:
                each["masks"] = each["masks"][:, 0] > 0.5  # chosen by torchvision too, in its references
        return found

    def _check(self, images: Tensor, targets: Objects) -> None:
        if len(images) != len(targets):
            raise InputError(f"The batch has {len(images)} pictures and {len(targets)} targets; give one a picture.")
        for target in targets:
            absent = {"boxes", "labels", *(["masks"] if self.has_masks else [])} - set(target)
            if absent:
                raise InputError(
                    f"A target of the batch holds no {', '.join(sorted(absent))}, which `{self.network_name}` learns from. It "
                    f"holds {', '.join(sorted(target))}."
                )
            labels = target["labels"]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                raise InputError(
                    f"A target holds the classes {int(labels.min())} to {int(labels.max())}, but ImageDetector has 0 to "
                    f"{self.classes - 1}; set `classes`, or number the labels from 0."
                )

    # ---- training

    def training_step(self, batch: Any, batch_idx: int) -> Float[Tensor, ""]:
        """Return the sum of torchvision's losses, and log its parts."""
        parts = self.losses(batch)
        loss, size = torch.stack([part.float() for part in parts.values()]).sum(), len(images_of(batch))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": part.detach() for name, part in parts.items()}, batch_size=size)
        return loss

    def _collect(self, batch: Any) -> None:
        if self.scores is None:
            self.__dict__["scores"] = DetectionScores(self.has_masks).to(self.device)  # no part of the state dict
        self.scores.update(self.detections(images_of(batch)), targets_of(batch))  # pyright: ignore[reportOptionalMemberAccess]

    def _finish(self, stage: str) -> None:
        for name, value in (self.scores.compute() if self.scores is not None else {}).items():
            self.log(
                f"{stage}/{name}", torch.tensor(value, device=self.device), prog_bar=name == "box_ap", sync_dist=True
            )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect detections."""
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log average precision."""
        self._finish("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Collect detections."""
        self._collect(batch)

    def on_test_epoch_end(self) -> None:
        """Log average precision."""
        self._finish("test")

    def predict_step(self, batch: Any, batch_idx: int) -> Objects:
        """Return detections."""
        return self.detections(images_of(batch))

    def configure_optimizers(self) -> Any:
        """Give the optimizer all trainable parameters."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }
