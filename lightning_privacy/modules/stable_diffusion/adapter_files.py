"""What goes into a checkpoint of an adapted model, what is checked on the way back, and the adapter's own files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch

from lightning_privacy.errors import ManifestError

__all__ = ["AdapterFiles"]


class AdapterFiles(L.LightningModule):
    """Checkpoints and exports of `StableDiffusionLoRA`; a part of that class, split off for the reader."""

    # Set by the class this is a part of.
    unet: Any
    text_encoder: Any
    scheduler: Any
    rank: int
    alpha: float
    text_encoder_rank: int
    text_encoder_alpha: float
    base_fingerprint: str
    _frozen_keys: set[str]

    def _ensure_configured(self) -> None:
        # Not `configure_model` itself on every call: defences patch it, and their surgery would be checked each time.
        if self.unet is None:
            self.configure_model()

    def _identity(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "text_encoder_rank": self.text_encoder_rank,
            "text_encoder_alpha": self.text_encoder_alpha,
            "base_model": self.base_fingerprint,
            "prediction_type": self.scheduler.config.prediction_type,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out; keep adapters, and what defences inserted or train."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k not in self._frozen_keys}
        checkpoint["lora"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other adapters or of another base model."""
        self._ensure_configured()
        saved, own = checkpoint.get("lora", {}), self._identity()
        wrong = [f"{k} is {saved.get(k)} in the checkpoint and {own[k]} here" for k in own if saved.get(k) != own[k]]
        if wrong:
            raise ManifestError(
                f"The checkpoint does not belong to this StableDiffusionLoRA: {'; '.join(wrong)}. Build the module "
                "with the arguments it was trained with."
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load adapters; frozen weights may be absent, but no adapter may, and nothing may be left over.

        Args:
            state_dict: Tensors by name.
            strict: Whether keys that a defence inserted must be present as well.
            assign: As in ``torch.nn.Module.load_state_dict``.

        Raises:
            ManifestError: An adapter is missing, or a key has no place.
        """
        from lightning_privacy.modules.stable_diffusion.lora import is_lora_key

        self._ensure_configured()
        own = self.state_dict()
        unknown = [k for k in state_dict if k not in own]
        missing = [k for k in own if k not in state_dict and k not in self._frozen_keys]
        lost = [k for k in missing if strict or is_lora_key(k)]
        if lost or unknown:
            # Checked beforehand: a refused load leaves the module as it was.
            raise ManifestError(
                f"The weights do not fit this StableDiffusionLoRA: {len(lost)} tensors are missing {lost[:2]} and "
                f"{len(unknown)} have no place {unknown[:2]}. Build the module with the same rank and target_modules, "
                "and attach the defences it was trained with."
            )
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        result.missing_keys[:] = missing
        return result

    @property
    def _adapted_text_encoder(self) -> Any:
        return self.text_encoder if self.text_encoder_rank else None

    def save_adapter(self, folder: Path | str) -> Path:
        """Write the adapter for ``StableDiffusionPipeline.load_lora_weights``; returns the file.

        Args:
            folder: Receives ``pytorch_lora_weights.safetensors``.
        """
        from lightning_privacy.modules.stable_diffusion.export import save_diffusers

        self._ensure_configured()
        return save_diffusers(Path(folder), self.unet, self._adapted_text_encoder)

    def save_kohya(self, file: Path | str, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> Path:
        """Write the adapter in kohya's format (A1111, ComfyUI, sd-scripts); returns the file.

        Args:
            file: Name ending in ``.safetensors``.
            dtype: Storage of the tensors; ``float16`` halves the file.
        """
        from lightning_privacy.modules.stable_diffusion.export import save_kohya
        from lightning_privacy.modules.stable_diffusion.kohya import kohya_metadata

        self._ensure_configured()
        metadata = kohya_metadata(self.hparams, self.rank, self.alpha)
        return save_kohya(Path(file), self.unet, self._adapted_text_encoder, metadata, getattr(torch, dtype))

    def load_adapter(self, path: Path | str) -> None:
        """Read an adapter that `save_adapter`, `save_kohya`, diffusers or kohya's trainer wrote.

        Args:
            path: File, or folder with ``pytorch_lora_weights.safetensors``.
        """
        from lightning_privacy.modules.stable_diffusion.export import load_adapter

        self._ensure_configured()
        load_adapter(Path(path), self.unet, self._adapted_text_encoder)
