"""Pictures to latents and captions to hidden states, each computed once."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.encoding_cache import EncodingCache, content_key

__all__ = ["Encoder"]


def _fingerprint(model: Any) -> str:
    from lightning_privacy.modules.stable_diffusion.components import fingerprint

    return fingerprint(model)


class Encoder:
    """The frozen front of a latent diffusion model, with its two caches.

    Args:
        vae: Autoencoder.
        text_encoder: CLIP text model.
        tokenizer: Its tokenizer.
        clip_skip: Layers left out at the end of the text encoder.
        trains_text: Whether the text encoder has trainable adapters; its output is then never cached.
        cache_dir: Folder of both caches, memory only if None.
    """

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        clip_skip: int,
        trains_text: bool,
        cache_dir: Path | str | None,
    ) -> None:
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
        self.clip_skip, self.trains_text = clip_skip, trains_text
        self.latents, self.states = EncodingCache(cache_dir), EncodingCache(cache_dir)

    @cached_property
    def _vae_key(self) -> str:
        return _fingerprint(self.vae)

    @cached_property
    def _text_key(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return f"{_fingerprint(self.text_encoder)} {content_key(str(vocabulary), '')} {self.clip_skip}"

    @property
    def factor(self) -> int:
        """Pixels of a picture per latent pixel, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[int, int, int]:
        """Return the shape of one picture's latent.

        Raises:
            InputError: The sides of the pictures are no multiples of the factor.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"Pictures of {width} x {height} pixels do not fit the autoencoder: sides must be multiples of "
                f"{self.factor}. Resize or crop them in the datamodule."
            )
        return self.vae.config.latent_channels, height // self.factor, width // self.factor

    def images(
        self, images: Float[Tensor, "batch 3 height width"], device: torch.device
    ) -> Float[Tensor, "batch channels h w"]:
        """Return the posterior means times the scaling factor, from the cache where these pixels were seen before.

        Args:
            images: Values in [0, 1].
            device: Where the autoencoder is, and where the latents go.
        """
        self.latent_shape(images)

        def encode(i: int) -> Tensor:
            # Autocast is off so that an entry does not depend on who asked for it first.
            with torch.autocast(device.type, enabled=False):
                pixels = images[i : i + 1].to(device, torch.float32) * 2 - 1
                return self.vae.encode(pixels).latent_dist.mode()[0] * self.vae.config.scaling_factor

        return self.latents.get([content_key(image, self._vae_key) for image in images], encode).to(device)

    def text(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "batch tokens features"]:
        """Return hidden states, cut or padded to the tokenizer's length.

        Args:
            captions: Texts.
            device: Where the text encoder is, and where the states go.
        """
        if self.trains_text:
            return self._states(captions, device)

        def encode(i: int) -> Tensor:
            with torch.autocast(device.type, enabled=False):
                return self._states([captions[i]], device)[0]

        return self.states.get([content_key(caption, self._text_key) for caption in captions], encode).to(device)

    def _states(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "batch tokens features"]:
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids = self.tokenizer(list(captions), **options).input_ids.to(device)
        output = self.text_encoder(ids, output_hidden_states=self.clip_skip > 0)
        if self.clip_skip == 0:
            return output.last_hidden_state
        # Newer transformers versions have no `text_model` level.
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        return inner.final_layer_norm(output.hidden_states[-(self.clip_skip + 1)])
