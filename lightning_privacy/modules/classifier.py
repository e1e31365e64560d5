"""An image classifier as a LightningModule."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.core.batches import images_of, labels_of, with_images
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import InputError
from lightning_privacy.modules.classifier_scores import ClassifierScores
from lightning_privacy.modules.mixup import mixed_loss, mixup
from lightning_privacy.protocols import Draw

__all__ = ["ImageClassifier"]

# Networks are imported inside methods: `--help` and `check` must not wait for torchvision and timm.


class ImageClassifier(L.LightningModule):
    """Train a network to name the class of a picture.

    Batches are ``{"image": (batch, channels, height, width) in [0, 1], "label": (batch,) whole numbers}`` or
    ``(pictures, labels)``. The network is built when training starts and its first weights are a function of the global
    seed alone. Validation and test log the plain cross-entropy, whatever training minimises.

    Args:
        network: ``small_cnn`` (two convolutions, no normalisation), ``lenet``, ``cifar_resnet18``, ``cifar_resnet20``,
            ``cifar_resnet32``, ``split_cnn`` (cut into client and server, with batch normalisation), ``block_mlp`` (reads
            whole blocks of pixels); any classifier of torchvision (``torchvision:resnet50``) or timm
            (``timm:convnext_tiny``); or the import path of a class of networks that map pictures to class scores. A bare
            name is looked for in this order.
        classes: Number of classes; labels are 0 to ``classes - 1``.
        channels: Channels of the pictures, 1 or 3.
        image_size: Side of the pictures in pixels; ``small_cnn``, ``lenet``, ``split_cnn`` and ``block_mlp`` need it.
        network_args: Further arguments of the network, such as ``{norm: group}`` for ``cifar_resnet18``; all arguments
            of a class by import path.
        pretrained: Weights to start from: a ``.safetensors`` file, or a name of torchvision's or timm's weights such as
            ``DEFAULT``, which is downloaded. A last layer for other classes is left as built. Pickles are refused.
        freeze_backbone: Train the last linear layer alone; the rest stays in evaluation mode.
        mean: Mean of the pictures, one number or one a channel, that is taken off inside the module; null for that of
            ``pretrained`` weights, else 0.
        std: Standard deviation, by which they are then divided; null for that of ``pretrained`` weights, else 1.
        label_smoothing: Probability spread over all classes in the training loss, 0 to 1 (arXiv 1512.00567).
        mixup: Alpha of mixup (arXiv 1710.09412); 0 is off. With it, no training loss belongs to one record.
        optimizer: Builds the optimizer from parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer, advanced every step.
        seed: Seed of mixup.

    Raises:
        InputError: A value is out of its range, or there is no such network.

    Example:
        >>> module = ImageClassifier("small_cnn", classes=10, channels=1, image_size=8)
        >>> module.configure_model()
        >>> module.logits({"image": torch.zeros(2, 1, 8, 8)}).shape
        torch.Size([2, 10])
    """

    # Set by `configure_model`; None before.
    network: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str = "small_cnn",
        classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        network_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        freeze_backbone: bool = False,
        mean: float | int | list[float | int] | None = None,
        std: float | int | list[float | int] | None = None,
        label_smoothing: float | int = 0.0,
        mixup: float | int = 0.0,
        # chosen here: AdamW's usual rate, with which all of our networks learn untuned
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if classes < 2 or channels < 1 or image_size < 1 or not 0 <= label_smoothing < 1 or mixup < 0:
            raise InputError(
                "ImageClassifier needs classes >= 2, channels >= 1, image_size >= 1, label_smoothing in [0, 1) and mixup "
                f">= 0, but was given {classes}, {channels}, {image_size}, {label_smoothing}, {mixup}."
            )
        self.network_name, self.network_args, self.pretrained = network, dict(network_args or {}), pretrained
        self.classes, self.channels, self.image_size = classes, channels, image_size
        self.freeze_backbone, self.given_mean, self.given_std = freeze_backbone, mean, std
        self.label_smoothing, self.mixup, self.seed = float(label_smoothing), float(mixup), seed
        # A lambda shows its arguments to the command line, but does not pickle.
        default = inspect.signature(ImageClassifier.__init__).parameters["optimizer"].default
        self.optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2) if optimizer is default else optimizer
        self.lr_scheduler = lr_scheduler
        self.network, self.head_name = None, None
        # Buffers follow the module's device; they are settings and do not belong in a checkpoint.
        self.register_buffer("mean", self._per_channel("mean", 0.0 if mean is None else mean), persistent=False)
        self.register_buffer("std", self._per_channel("std", 1.0 if std is None else std), persistent=False)
        self.val_scores, self.test_scores = ClassifierScores(classes), ClassifierScores(classes)

    def _per_channel(self, name: str, values: float | int | list[float | int]) -> Float[Tensor, "channels 1 1"]:
        found = torch.as_tensor(values, dtype=torch.float32, device="cpu").reshape(-1)
        if len(found) not in (1, self.channels) or (name == "std" and bool((found <= 0).any())):
            raise InputError(
                f"ImageClassifier: `{name}` is {values}; give one number or {self.channels} (one a channel)"
                f"{', above 0' if name == 'std' else ''}."
            )
        return found.expand(self.channels).reshape(-1, 1, 1).clone()

    # ---- the model

    def configure_model(self) -> None:
        """Build the network, once, with weights that are a function of the global seed alone; load ``pretrained``."""
        if self.network is not None:
            return
        from lightning_privacy.modules.networks.build import build_network, find_network
        from lightning_privacy.modules.networks.head import find_head
        from lightning_privacy.modules.networks.weights import pretrained_network

        seed = derive_seed("classifier", torch.initial_seed())
        shape = (self.classes, self.channels, self.image_size)
        # On the CPU whatever Lightning's device context says: the same seed then starts the same on every device.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            source, name = find_network(self.network_name)
            if self.pretrained is None:
                network, trained_with = build_network(source, name, *shape, self.network_args), None
            else:
                network, trained_with = pretrained_network(source, name, self.pretrained, *shape, self.network_args)
            if trained_with is not None and self.given_mean is None and self.given_std is None:
                self.mean, self.std = (
                    self._per_channel(word, values) for word, values in zip(("mean", "std"), trained_with, strict=True)
                )
        self.head_name = find_head(network, self.classes)
        if self.freeze_backbone:
            head = network.get_submodule(self._head())
            network.requires_grad_(False)
            head.requires_grad_(True)
            kept = set(head.modules())
            self._frozen_modules = [each for each in network.modules() if each not in kept]
        self.network = network
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        for module in self.__dict__.get("_frozen_modules", ()):
            module.training = False
        return self

    def _built(self) -> Any:
        if self.network is None:
            self.configure_model()
        return self.network

    def _head(self) -> str:
        if self.head_name is None:
            raise InputError(
                f"The network `{self.network_name}` has no linear layer with {self.classes} outputs, so it has neither an "
                "embedding nor a backbone to freeze; choose a network that ends in one, or override `embedding(batch)`."
            )
        return self.head_name

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores of pictures with values in [0, 1]."""
        network = self._built()
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise InputError(
                f"ImageClassifier got pictures of shape {tuple(images.shape)} and type {images.dtype}; it takes floats in "
                f"[0, 1] of shape (batch, {self.channels}, height, width). Set `channels`, or convert the pictures."
            )
        logits = network((images - self.mean) / self.std)
        if not isinstance(logits, Tensor) or logits.shape != (len(images), self.classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise InputError(
                f"The network `{self.network_name}` returned {found} for {len(images)} pictures; ImageClassifier needs "
                f"class scores of shape ({len(images)}, {self.classes}), one tensor. Set `classes` or `network_args`."
            )
        return logits

    # ---- what defences and audits ask for

    def logits(self, batch: Any) -> Float[Tensor, "batch classes"]:
        """Return the class scores before the softmax."""
        return self(images_of(batch))

    def embedding(self, batch: Any) -> Float[Tensor, "batch features"]:
        """Return what the last linear layer reads.

        Raises:
            InputError: The network does not end in one linear layer.
        """
        from lightning_privacy.modules.networks.head import head_input

        # By name, not by object: a defence may have wrapped the layer.
        return head_input(self, self._built().get_submodule(self._head()), images_of(batch))

    def sample_draw(self, batch: Any, generator: torch.Generator) -> Draw:
        """Return an empty draw: nothing about the error is random."""
        return Draw()

    def _labels(self, batch: Any) -> Int[Tensor, " batch"]:
        labels, images = labels_of(batch), images_of(batch)
        if len(labels) != len(images):
            raise InputError(
                f"The batch has {len(images)} pictures and {len(labels)} labels; give one label a picture."
            )
        # On a GPU this waits for the device, once a step; unchecked, a wrong label would end the process there.
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if len(wrong):
            raise InputError(
                f"A batch of {len(labels)} labels holds the class {int(wrong[0])}, but ImageClassifier has classes 0 to "
                f"{self.classes - 1}; set `classes`, or number the labels from 0."
            )
        return labels

    def per_sample_error(self, batch: Any, draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return the plain cross-entropy of each record, without label smoothing or mixup, in float32."""
        labels = self._labels(batch)
        return F.cross_entropy(self.logits(batch).float(), labels, reduction="none")

    def per_sample_loss(self, batch: Any, draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return what training minimises: the cross-entropy of each record, with label smoothing.

        Raises:
            InputError: Mixup is on.
        """
        self._refuse_mixup("per_sample_loss")
        labels = self._labels(batch)
        return F.cross_entropy(
            self.logits(batch).float(), labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def functional_loss(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Any
    ) -> Float[Tensor, ""]:
        """Return the loss that ``training_step`` minimises, with the module's weights replaced.

        Labels are not checked, because a value cannot be looked at under ``torch.func.vmap``.

        Args:
            parameters: By the names of the module's ``named_parameters()``.
            buffers: By the names of its ``named_buffers()``.
            batch: A batch.

        Raises:
            InputError: Mixup is on.
        """
        self._refuse_mixup("functional_loss")
        if self.network is None:
            raise InputError("ImageClassifier.functional_loss needs a network; call `configure_model()` before.")
        logits: Tensor = torch.func.functional_call(self, {**parameters, **buffers}, (images_of(batch),))
        return F.cross_entropy(logits.float(), labels_of(batch), label_smoothing=self.label_smoothing)

    def _refuse_mixup(self, what: str) -> None:
        if self.mixup:
            raise InputError(
                f"ImageClassifier.{what}: with mixup={self.mixup} every training loss belongs to two records at once, so "
                "there is none of one record; set mixup to 0."
            )

    # ---- training

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the loss, and where it is the mean of plain cross-entropies, those too, which defences reuse."""
        labels = self._labels(batch)
        if self.mixup:
            # By rank too: processes have different pictures, and must not share one λ.
            generator = np.random.default_rng(
                derive_seed("mixup", self.seed, self.global_step, batch_idx, self.global_rank)
            )
            images, partner, share = mixup(images_of(batch), self.mixup, generator)
            logits = self.logits(with_images(batch, images)).float()
            loss = mixed_loss(logits, labels, partner, share, self.label_smoothing)
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels))
            return {"loss": loss}  # blends have no class to be right about
        logits = self.logits(batch).float()
        error = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        loss, right = error.mean(), (logits.detach().argmax(1) == labels).float().mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels))
        self.log("train/accuracy", right, batch_size=len(labels))
        return {"loss": loss} if self.label_smoothing else {"loss": loss, "per_sample_error": error, "draw": Draw()}

    def _evaluate(self, batch: Any, stage: str, scores: ClassifierScores) -> None:
        labels, logits = self._labels(batch), self.logits(batch).float()
        scores.update(logits, labels)
        self.log(
            f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=True, batch_size=len(labels), sync_dist=True
        )

    def _finish(self, stage: str, scores: ClassifierScores) -> None:
        values, absent = scores.compute()
        for name, value in values.items():
            self.log(f"{stage}/{name}", value.to(self.device), prog_bar=name == "accuracy", sync_dist=True)
        if absent and absent != self.__dict__.get(f"_told_{stage}"):
            self.__dict__[f"_told_{stage}"] = absent
            named = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
            rank_zero_info(f"{stage}/auroc is not logged: none of its records has the class {named}.")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the plain cross-entropy and collect scores."""
        self._evaluate(batch, "val", self.val_scores)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, AUROC and calibration error."""
        self._finish("val", self.val_scores)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the plain cross-entropy and collect scores."""
        self._evaluate(batch, "test", self.test_scores)

    def on_test_epoch_end(self) -> None:
        """Log accuracy, AUROC and calibration error."""
        self._finish("test", self.test_scores)

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "batch classes"]:
        """Return class probabilities."""
        return self.logits(batch).float().softmax(1)

    def configure_optimizers(self) -> Any:
        """Give the optimizer all trainable parameters."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
