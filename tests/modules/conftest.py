import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_privacy.testing.tiny_diffusion import random_stable_diffusion


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_stable_diffusion(tmp_path_factory.mktemp("sd"), factor=2)


@pytest.fixture(scope="session")
def velocity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_stable_diffusion(
        tmp_path_factory.mktemp("sd-v"), factor=2, prediction_type="v_prediction", scheduler="ddim"
    )


@pytest.fixture(scope="session", autouse=True)
def quick_loading() -> Iterator[None]:
    """Read each random model from disk once and copy it afterwards; reading itself is tested in test_sd_loading."""
    from lightning_privacy.modules.stable_diffusion import components

    load, seen = components.load_components, {}

    def load_once(pretrained: str, config: str | None = None) -> Any:
        if pretrained not in seen:
            seen[pretrained] = load(pretrained, config)
        return copy.deepcopy(seen[pretrained])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "load_components", load_once)
        yield


@pytest.fixture
def build(tiny_folder: Path) -> Callable[..., Any]:
    """Configured StableDiffusionLoRA on the random model; ``trained=True`` moves the up matrices off zero."""
    from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA
    from lightning_privacy.modules.stable_diffusion.lora import is_lora_key

    def make(trained: bool = False, **options: Any) -> StableDiffusionLoRA:
        module = StableDiffusionLoRA(**{"pretrained": str(tiny_folder), "rank": 4, "val_timesteps": 2, **options})
        module.configure_model()
        if trained:
            generator = torch.Generator().manual_seed(5)
            for name, p in module.named_parameters():
                if is_lora_key(name):
                    p.data = 0.3 * torch.randn(p.shape, generator=generator)
        return module

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    return {
        "image": torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "caption": ["a photo of person 21", "a photo of person 3, red, blue, green", "a photo of a face"],
        "record": torch.tensor([11, 2**62 + 3, 12]),
    }
