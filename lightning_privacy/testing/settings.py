"""How to test each registered defence and audit: on which module and data, with which arguments.

Adding a defence or an audit to the package adds one entry here.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from jaxtyping import Int
from torch import Tensor, nn

from lightning_privacy.testing import dummy_defences as dummies
from lightning_privacy.testing.drawn_objects import locked_scenes, small_detector
from lightning_privacy.testing.tiny_modules import PlainRegressor, ProtocolRegressor, TinyDenoiser
from lightning_privacy.testing.toy_data import ToyImages

__all__ = ["AUDITS", "DEFENCES", "DUMMIES", "AuditCase", "DefenceCase", "plain_images", "split_images"]


def plain_images(batch_size: int = 8) -> L.LightningDataModule:
    """Return 32 pictures, each a function of its index.

    Args:
        batch_size: Pictures a batch and process.
    """
    return ToyImages(n=32, size=8, batch_size=batch_size)


def split_images(batch_size: int = 8) -> L.LightningDataModule:
    """Return the same kind of pictures, divided into members and others.

    Args:
        batch_size: Pictures a batch and process.
    """
    from lightning_privacy.datamodules.membership_split import MembershipSplit

    inner = ToyImages(n=96, size=8, batch_size=batch_size)
    return MembershipSplit(
        inner, fractions={"member": 1 / 3, "aux_nonmember": 1 / 6, "attack_nonmember": 1 / 6, "val": 1 / 12}
    )


def locked_images(batch_size: int = 8) -> L.LightningDataModule:
    """Return the divided pictures, edited by a key, with decoys.

    Args:
        batch_size: Pictures a batch and process.
    """
    from lightning_privacy.datamodules.locked import LockedDataModule
    from lightning_privacy.datamodules.membership_split import MembershipSplit
    from lightning_privacy.editors import LockSecret, NegativePositiveEditor

    editor = NegativePositiveEditor.with_secret(LockSecret(seed=bytes(range(32))))
    inner = LockedDataModule(ToyImages(n=96, size=8, batch_size=batch_size), editor, cache=None, decoys=1)
    return MembershipSplit(
        inner, fractions={"member": 1 / 3, "aux_nonmember": 1 / 6, "attack_nonmember": 1 / 6, "val": 1 / 12}
    )


def canary_images(batch_size: int = 8) -> L.LightningDataModule:
    """Return the divided pictures with canaries planted among them.

    Args:
        batch_size: Pictures a batch and process.
    """
    from lightning_privacy.datamodules.canaries import CanaryData

    return CanaryData(split_images(batch_size), count=20)


def disc_classifier() -> L.LightningModule:
    """Return a classifier of the pictures' colours."""
    from lightning_privacy.modules.classifier import ImageClassifier

    return ImageClassifier("small_cnn", classes=4, image_size=8)


def bright_background(batch: Mapping[str, Any]) -> Int[Tensor, " batch"]:
    """Return an attribute of the pictures that is not their class: whether what surrounds the disc is bright.

    Args:
        batch: A batch of the divided pictures.
    """
    return (batch["image"][:, :, 0, 0].mean(1) > 0.35).long()  # backgrounds are from 0.2 to 0.5


@dataclass(frozen=True)
class DefenceCase:
    """How the contract suite tests one defence. Everything in it must be importable by name: ranks are processes.

    Args:
        defence: Its class.
        kwargs: Arguments under which it acts, as small and fast as it goes.
        zero_kwargs: Changes to them under which training must equal undefended training bit for bit; None where no
            strength switches the defence off.
        module: Makes the module.
        data: Makes the datamodule from the batch size a process.
        per_process: Arguments that count per process: one process gets twice what each of two gets.
        world_invariant: Whether one and two processes on the same global batch must agree.
        exact_in_epoch: Whether the module and data resume exactly in the middle of an epoch.
        data_side: Whether a part of the defence is in its data, which every pair with it then trains on.
    """

    defence: type
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    zero_kwargs: Mapping[str, Any] | None = None
    module: Callable[[], L.LightningModule] = TinyDenoiser
    data: Callable[[int], L.LightningDataModule] = split_images
    per_process: tuple[str, ...] = ()
    world_invariant: bool = True
    exact_in_epoch: bool = True
    data_side: bool = False

    @property
    def name(self) -> str:
        """The defence's name."""
        return self.defence.name  # pyright: ignore[reportAttributeAccessIssue]

    def build(self, **changes: Any) -> Any:
        """Return a new defence.

        Args:
            **changes: Arguments other than the case's.
        """
        return self.defence(**{**self.kwargs, **changes})


@dataclass(frozen=True)
class AuditCase:
    """How the contract suite tests one audit.

    Args:
        name: Its registered name.
        kwargs: Its arguments.
        module: Makes the module.
        data: Makes the datamodule from the batch size a process.
        writes: Files of the run folder that the audit must have written.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: Callable[[], L.LightningModule] = TinyDenoiser
    data: Callable[[int], L.LightningDataModule] = split_images
    writes: tuple[str, ...] = ("results.jsonl",)


DUMMIES: dict[str, DefenceCase] = {
    case.name: case
    for case in (
        DefenceCase(
            dummies.ObjectiveDummy, {}, {"strength": 0.0}, ProtocolRegressor, plain_images, world_invariant=False
        ),
        DefenceCase(dummies.SurgeryDummy, {}, None, PlainRegressor, plain_images),
        DefenceCase(dummies.GradientDummy, {}, {"factor": 1.0}, PlainRegressor, plain_images),
        DefenceCase(dummies.PostStepDummy, {}, {"bound": 1e9}, TinyDenoiser, plain_images),
    )
}


def _smp_lora() -> DefenceCase:
    from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA

    return DefenceCase(
        SMPLoRA,
        {"strength": 0.5, "aux_batch_size": 4, "hidden": (8,)},
        zero_kwargs={"strength": 0.0, "delta": 0.0},
        per_process=("aux_batch_size",),
    )


def tiny_classifier() -> L.LightningModule:
    """Return a classifier of the pictures' colours that has every protocol and a normalisation layer."""
    from lightning_privacy.testing.tiny_classifier import TinyClassifier

    module = TinyClassifier()
    module.scores = nn.LayerNorm(4)
    return module


def _adversarial_inversion() -> DefenceCase:
    from lightning_privacy.callbacks.adversarial_inversion.callback import AdversarialInversion

    kwargs = {"tap": "network.conv1", "decoder_steps": 1, "width": 4}
    return DefenceCase(AdversarialInversion, kwargs, {"strength": 0.0}, tiny_classifier)


def _bido() -> DefenceCase:
    from lightning_privacy.callbacks.bido.callback import BiDO

    kwargs = {"taps": ["network.conv1", "network.conv2"]}
    off = {"lambda_x": 0.0, "lambda_y": 0.0}
    return DefenceCase(BiDO, kwargs, off, tiny_classifier, world_invariant=False)  # a statistic of each process's batch


@functools.cache
def _private_folder() -> Path:
    """Return where the contract's runs keep their secrets; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="lightning_privacy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _clip_and_noise() -> DefenceCase:
    from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise

    off = {"unit": "batch", "max_norm": 1e9, "noise_multiplier": 0.0}
    return DefenceCase(ClipAndNoise, {"max_norm": 0.5, "unit": "auto", "seed": 0}, off, tiny_classifier)


def _gradient_bottleneck() -> DefenceCase:
    from lightning_privacy.callbacks.gradient_bottleneck.callback import GradientBottleneck

    kwargs = {"head": "network.head", "latents": 4}
    return DefenceCase(GradientBottleneck, kwargs, None, tiny_classifier, world_invariant=False)  # as NoiseTap


def _gradient_noise() -> DefenceCase:
    from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise

    return DefenceCase(GradientNoise, {"std": 0.1, "seed": 0}, {"std": 0.0}, tiny_classifier)


def _gradient_pruning() -> DefenceCase:
    from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning

    return DefenceCase(GradientPruning, {"share": 0.7}, {"share": 0.0}, tiny_classifier)


def _key_lock() -> DefenceCase:
    from lightning_privacy.callbacks.key_lock.callback import KeyLock

    kwargs = {"key": f"vault:{_private_folder() / 'keys.safetensors'}#key_lock", "key_length": 16}
    return DefenceCase(KeyLock, {**kwargs, "fresh_key": "each_epoch"}, None, tiny_classifier)


def _private_affine() -> DefenceCase:
    from lightning_privacy.callbacks.key_lock.private_affine import PrivateAffine

    return DefenceCase(PrivateAffine, {"private": str(_private_folder() / "states")}, None, tiny_classifier)


def _model_lock() -> DefenceCase:
    from lightning_privacy.callbacks.model_lock.callback import ModelLock

    off = {"mode": "edited_only", "rho": 0.0}
    # a residue is a mean over each process's batch
    return DefenceCase(
        ModelLock, {"mode": "contrastive"}, off, tiny_classifier, locked_images, world_invariant=False, data_side=True
    )


def _negative_label_smoothing() -> DefenceCase:
    from lightning_privacy.callbacks.negative_label_smoothing.callback import NegativeLabelSmoothing

    kwargs = {"factor": -0.1, "warmup": 0.0, "ramp": 0.0}
    return DefenceCase(NegativeLabelSmoothing, kwargs, {"factor": 0.0}, tiny_classifier)


def _nopeek() -> DefenceCase:
    from lightning_privacy.callbacks.nopeek.callback import NoPeek

    kwargs = {"tap": "network.conv1"}
    return DefenceCase(NoPeek, kwargs, {"strength": 0.0}, tiny_classifier, world_invariant=False)  # as BiDO


_FIRST_LAYER = "*n[wv]*[1d]"
"""Matches one layer of each tiny module: `inward` of the denoiser, `network.conv1` of the classifier."""


def _noise_tap() -> DefenceCase:
    from lightning_privacy.callbacks.noise_tap.callback import NoiseTap

    kwargs = {"tap": _FIRST_LAYER, "sigma": 0.1}
    # Each process draws noise of its own.
    return DefenceCase(NoiseTap, kwargs, {"sigma": 0.0}, tiny_classifier, world_invariant=False)


def _sparse_coding() -> DefenceCase:
    from lightning_privacy.callbacks.sparse_coding.callback import SparseCoding

    # The second layer of each tiny module, so that gradients pass through the code to the first.
    kwargs = {"names": ["re:network[.]conv2|outward"], "iters": 4, "dictionary": "hebbian", "eta": 0.05}
    return DefenceCase(SparseCoding, kwargs, None, tiny_classifier)


def _variational_bottleneck() -> DefenceCase:
    from lightning_privacy.callbacks.variational_bottleneck.callback import VariationalBottleneck

    kwargs = {"tap": _FIRST_LAYER}
    return DefenceCase(VariationalBottleneck, kwargs, None, tiny_classifier, world_invariant=False)  # as NoiseTap


DEFENCES: dict[str, Callable[[], DefenceCase]] = {
    "adversarial_inversion": _adversarial_inversion,
    "bido": _bido,
    "clip_and_noise": _clip_and_noise,
    "gradient_bottleneck": _gradient_bottleneck,
    "gradient_noise": _gradient_noise,
    "gradient_pruning": _gradient_pruning,
    "key_lock": _key_lock,
    "model_lock": _model_lock,
    "negative_label_smoothing": _negative_label_smoothing,
    "noise_tap": _noise_tap,
    "nopeek": _nopeek,
    "private_affine": _private_affine,
    "smp_lora": _smp_lora,
    "sparse_coding": _sparse_coding,
    "variational_bottleneck": _variational_bottleneck,
}
"""By registered name; functions, so that only the defence under test is imported."""

AUDITS: dict[str, AuditCase] = {
    "membership": AuditCase("membership", {"every_n_epochs": 1, "draws": 1, "bootstrap": 50}),
    "structural": AuditCase("structural", {"every_n_epochs": 1, "draws": 1, "bootstrap": 50}),
    "attribute": AuditCase(
        "attribute", {"attribute": f"{__name__}.bright_background", "every_n_epochs": 1}, disc_classifier
    ),
    "canaries": AuditCase("canaries", {"every_n_epochs": 1, "draws": 1, "bootstrap": 50}, data=canary_images),
    "inversion": AuditCase(
        "inversion",
        {
            "taps": ["logits"],
            "attacks": ["trained_decoder"],
            "attack_args": {"trained_decoder": {"max_steps": 6, "width": 4, "blocks": 1}},
            "victims": 8,
            "every_n_epochs": 1,
            "ceiling": False,
            "bootstrap": 50,
        },
        disc_classifier,
    ),
    "class_inversion": AuditCase(
        "class_inversion",
        {
            "most": 2,
            "attack_args": {
                "candidates": 8,
                "optimised": 2,
                "kept": 1,
                "steps": 1,
                "search_crops": 1,
                "final_crops": 1,
            },
            "latent_dim": 2,
            "generator_steps": 3,
            "evaluation_steps": 3,
            "every_n_epochs": 1,
            "bootstrap": 50,
        },
        disc_classifier,
    ),
    "lock": AuditCase(
        "lock",
        {
            "attacks": ["no_key", "mean_residual", "wrong_seed", "fine_tune"],
            "attack_args": {"fine_tune": {"steps": 2, "rates": [1e-3]}},
            "shares": [0.5],
            "every_n_epochs": 1,
        },
        tiny_classifier,
        locked_images,
    ),
    "detection_lock": AuditCase(
        "detection_lock",
        {"attacks": ["no_key", "mean_residual", "wrong_seed", "fine_tune"], "steps": 1, "rates": [1e-3]}
        | {"bootstrap": 5, "every_n_epochs": 1},
        small_detector,
        locked_scenes,
    ),
    "leakage": AuditCase(
        "leakage",
        {
            "attacks": ["dlg"],
            "attack_args": {"dlg": {"evaluations": 4, "restarts": 1}},
            "victims": 2,
            "every_n_epochs": 1,
            "bootstrap": 50,
        },
        disc_classifier,
    ),
    "quality": AuditCase("quality", {"every_n_epochs": 1, "n": 12, "grid": 4}, writes=("measurements.jsonl",)),
}
"""By registered name."""
