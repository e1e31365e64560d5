"""LightningModules: Stable Diffusion LoRA fine-tuning, and the pre-training of the bundled tiny Stable Diffusion."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA as StableDiffusionLoRA
    from lightning_privacy.modules.pretraining.autoencoder import AutoencoderPretraining as AutoencoderPretraining
    from lightning_privacy.modules.pretraining.diffusion import DiffusionPretraining as DiffusionPretraining

_WHERE = {
    "AutoencoderPretraining": "lightning_privacy.modules.pretraining.autoencoder",
    "DiffusionPretraining": "lightning_privacy.modules.pretraining.diffusion",
    "StableDiffusionLoRA": "lightning_privacy.modules.latent_diffusion",
}
__all__ = ["AutoencoderPretraining", "DiffusionPretraining", "StableDiffusionLoRA"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
