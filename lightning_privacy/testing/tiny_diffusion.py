"""A random Stable Diffusion of the real classes, small enough to build in a test; it has learnt nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = ["CAPTIONS", "random_stable_diffusion"]

CAPTIONS = ("a photo of person 0123456789", "a photo of a face", "a natural picture, blue, green")


def random_stable_diffusion(
    folder: Path | str,
    *,
    seed: int = 0,
    factor: Literal[2, 4, 8] = 8,
    text_layers: int = 2,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    scheduler: Literal["pndm", "ddim"] = "pndm",
    captions: Sequence[str] = CAPTIONS,
) -> Path:
    """Save a diffusers pipeline folder with random weights: 4 x 8 x 8 latents, 0.3 M parameters.

    Args:
        folder: Where the pipeline is written.
        seed: Of the weights; torch's own random state is left alone.
        factor: Side of the pictures over side of the latents, so pictures are ``8 * factor`` pixels wide.
        text_layers: Layers of the text encoder.
        prediction_type: What the UNet predicts.
        scheduler: Class of the saved scheduler; the noise schedule is Stable Diffusion's in both.
        captions: Texts whose words become tokens of the vocabulary.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> sorted(p.name for p in random_stable_diffusion(tempfile.mkdtemp(), factor=2).iterdir())
        ['model_index.json', 'scheduler', 'text_encoder', 'tokenizer', 'unet', 'vae']
    """
    import diffusers
    import transformers

    from lightning_privacy.modules.stable_diffusion.tiny_tokenizer import build_tokenizer

    # Any: these constructors are typed for one block, one level and one scheduler class.
    hub: Any = diffusers
    text: Any = transformers
    tokenizer = build_tokenizer(captions)
    levels = factor.bit_length()
    width = 32
    noise = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        pipeline = hub.StableDiffusionPipeline(
            vae=hub.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=(8,) * levels,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=8 * factor,
                scaling_factor=0.5,
            ),
            text_encoder=text.CLIPTextModel(
                text.CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=text_layers,
                    num_attention_heads=2,
                    max_position_embeddings=tokenizer.model_max_length,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            tokenizer=tokenizer,
            unet=hub.UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(16, 32),
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                cross_attention_dim=width,
                attention_head_dim=2,
                norm_num_groups=8,
            ),
            # From a config, as PNDM's constructor has no `clip_sample`, which Stable Diffusion v1.5's file carries for
            # the sake of other samplers.
            scheduler={"pndm": hub.PNDMScheduler, "ddim": hub.DDIMScheduler}[scheduler].from_config(noise),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    bars = text.utils.logging.is_progress_bar_enabled()
    text.utils.logging.disable_progress_bar()
    pipeline.save_pretrained(folder)
    if bars:
        text.utils.logging.enable_progress_bar()
    return Path(folder)
