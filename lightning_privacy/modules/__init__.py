"""LightningModules: image classifiers, detectors, Stable Diffusion LoRA fine-tuning, the tiny model's pre-training."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.modules.classifier import ImageClassifier as ImageClassifier
    from lightning_privacy.modules.detector import ImageDetector as ImageDetector
    from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA as StableDiffusionLoRA
    from lightning_privacy.modules.pretraining.autoencoder import AutoencoderPretraining as AutoencoderPretraining
    from lightning_privacy.modules.pretraining.diffusion import DiffusionPretraining as DiffusionPretraining

_WHERE = {
    "AutoencoderPretraining": "lightning_privacy.modules.pretraining.autoencoder",
    "DiffusionPretraining": "lightning_privacy.modules.pretraining.diffusion",
    "ImageClassifier": "lightning_privacy.modules.classifier",
    "ImageDetector": "lightning_privacy.modules.detector",
    "StableDiffusionLoRA": "lightning_privacy.modules.latent_diffusion",
}
__all__ = ["AutoencoderPretraining", "DiffusionPretraining", "ImageClassifier", "ImageDetector", "StableDiffusionLoRA"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
