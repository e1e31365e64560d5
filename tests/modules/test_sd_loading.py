import ast
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.components import fingerprint, load_components
from lightning_privacy.testing.single_file import write_single_file
from lightning_privacy.testing.tiny_diffusion import random_stable_diffusion


def test_building_the_random_model_leaves_random_state_alone_and_depends_on_its_seed(tmp_path, tiny_folder):
    state = torch.get_rng_state()
    same = random_stable_diffusion(tmp_path / "a", factor=2)
    other = random_stable_diffusion(tmp_path / "b", factor=8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    parts = [load_components(str(f)) for f in (tiny_folder, same, other)]
    prints = [fingerprint(p.unet, p.vae, p.text_encoder) for p in parts]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint(parts[0].unet, sample=4) != fingerprint(parts[2].unet, sample=4)
    image = torch.rand(1, 3, 64, 64)
    assert parts[2].vae.encode(image).latent_dist.mode().shape == (1, 4, 8, 8)
    scheduler = parts[0].scheduler
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
    assert (scheduler.config.clip_sample, scheduler.config.steps_offset) == (False, 1)


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [
        ("/nowhere/model", "no file or folder /nowhere/model"),
        ("model.safetensors", "no file or folder model.safetensors"),
        ("weights/v1-5.ckpt", "is a pickle"),
    ],
)
def test_missing_or_pickled_weights_are_one_clear_error(pretrained, words):
    with pytest.raises(InputError, match=words):
        load_components(pretrained)


# diffusers' own call into huggingface_hub.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")
def test_a_hub_id_that_cannot_be_had_says_so_and_names_the_remedy(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"the hub model nobody/nothing.*diffusers' `save_pretrained`"):
        load_components("nobody/nothing")


def test_a_folder_that_lacks_parts_names_them(tmp_path, tiny_folder):
    with pytest.raises(InputError, match=r"lacks model_index.json, unet/, vae/"):
        load_components(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"folder {broken}.*safetensors"):
        load_components(str(broken))
    shutil.rmtree(broken / "vae")
    with pytest.raises(InputError, match=r"lacks vae/"):
        load_components(str(broken))


def test_other_families_are_refused(tmp_path, tiny_folder):
    folder = tmp_path / "xl"
    shutil.copytree(tiny_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": ["transformers", "X"]}))
    with pytest.raises(InputError, match="two text encoders"):
        load_components(str(folder))


def test_inpainting_models_are_refused(tmp_path, tiny_folder):
    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match="takes 9 channels, but its autoencoder makes 4"):
        load_components(str(folder))


def test_a_single_file_in_the_original_layout_is_the_model_it_was_written_from(tmp_path, tiny_folder):
    file = write_single_file(tiny_folder, tmp_path / "model.safetensors")
    assert "model.diffusion_model.input_blocks.1.0.in_layers.0.weight" in load_file(file)
    parts, original = load_components(str(file), str(tiny_folder)), load_components(str(tiny_folder))
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(parts, name).state_dict(), getattr(original, name).state_dict()
        assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert parts.tokenizer("a cat").input_ids == original.tokenizer("a cat").input_ids
    assert dict(parts.scheduler.config) == dict(original.scheduler.config)


def test_a_single_file_of_something_else_is_one_clear_error(tmp_path, tiny_folder):
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"file .*model.safetensors .*come from"):
        load_components(str(file), str(tiny_folder))


def test_the_module_file_and_what_it_imports_wait_with_hugging_face_libraries():
    """`--help` and `check` import the module file; importing diffusers takes seconds."""
    start, seen = "lightning_privacy.modules.latent_diffusion", set()
    todo = [start]
    while todo:
        name = todo.pop()
        spec = importlib.util.find_spec(name)
        if name in seen or not name.startswith("lightning_privacy.modules") or not spec or not spec.origin:
            continue
        seen.add(name)
        for node in ast.parse(Path(spec.origin).read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"diffusers", "transformers", "peft"}, name
            todo += names
    assert {f"lightning_privacy.modules.stable_diffusion.{n}" for n in ("draws", "encoder", "weighting")} < seen
