import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_privacy.errors import InputError
from lightning_privacy.modules.stable_diffusion.lora import is_lora_key
from lightning_privacy.modules.stable_diffusion.sampling import picture_generators

PROMPT = "a photo of person 21"
OPTIONS = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
VARIANTS = [
    {},
    {"alpha": 2, "text_encoder_rank": 2},
    {"target_modules": "kohya", "alpha": 8, "text_encoder_rank": 4, "text_encoder_alpha": 1},
]


def pipeline_with(folder, path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipeline


def adapter(module):
    return {n: p.detach() for n, p in module.named_parameters() if is_lora_key(n)}


@pytest.mark.parametrize("variant", VARIANTS, ids=["unet", "text", "kohya-targets"])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_an_exported_adapter_gives_the_same_pictures_in_a_plain_pipeline(build, tiny_folder, tmp_path, form, variant):
    module = build(trained=True, **variant)
    path = module.save_adapter(tmp_path) if form == "diffusers" else module.save_kohya(tmp_path / "adapter.safetensors")
    expected = module.generate([PROMPT], seed=2, steps=4, guidance=3.0)
    out = pipeline_with(tiny_folder, path)(PROMPT, generator=picture_generators(2, 1), **OPTIONS).images
    with module.reference():
        base = module.generate([PROMPT], seed=2, steps=4, guidance=3.0)
    assert not torch.allclose(expected, base, atol=1e-2)
    if form == "diffusers":
        assert torch.equal(out, expected)
    else:
        assert torch.allclose(out, expected, atol=1e-5)
    assert [f.name for f in tmp_path.iterdir()] == [path.name]  # no temporary file stays

    again = build(**variant)
    again.load_adapter(path)
    assert all(torch.equal(a, b) for a, b in zip(adapter(module).values(), adapter(again).values(), strict=True))


def test_kohya_names_alpha_and_metadata(build, tmp_path):
    module = build(trained=True, alpha=2, text_encoder_rank=2, clip_skip=1, seed=7)
    file = module.save_kohya(tmp_path / "a.safetensors", dtype="float16")
    tensors = load_file(file)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{stem}.lora_down.weight"].shape == (4, 16) and tensors[f"{stem}.lora_up.weight"].shape == (16, 4)
    assert float(tensors[f"{stem}.alpha"]) == 2.0
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert (metadata["ss_clip_skip"], metadata["ss_seed"]) == ("2", "7")
    assert not any("/" in v for v in metadata.values())
    with pytest.raises(InputError, match=r"\.safetensors file"):
        module.save_kohya(tmp_path / "a.ckpt")


def test_a_foreign_alpha_is_folded_in(build, batch, tmp_path):
    theirs, ours = build(trained=True, alpha=8, text_encoder_rank=2), build(alpha=4, text_encoder_rank=2)
    draw = ours.sample_draw(batch, torch.Generator().manual_seed(0))
    for path in (theirs.save_adapter(tmp_path), theirs.save_kohya(tmp_path / "k.safetensors")):
        ours.load_adapter(path)
        difference = ours.per_sample_error(batch, draw) - theirs.per_sample_error(batch, draw)
        assert difference.abs().max() < 1e-4


def test_diffusers_metadata_carries_alpha_and_targets(build, tmp_path):
    with safe_open(build(alpha=2).save_adapter(tmp_path), framework="pt") as opened:
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert metadata["unet.lora_alpha"] == 2 and sorted(metadata["unet.target_modules"]) == [
        "to_k", "to_out.0", "to_q", "to_v",
    ]  # fmt: skip


def test_files_that_do_not_fit_are_refused_and_change_nothing(build, tmp_path):
    module = build(trained=True)
    before = {k: v.clone() for k, v in adapter(module).items()}
    with pytest.raises(InputError, match="no adapter at"):
        module.load_adapter(tmp_path / "absent")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0")
    with pytest.raises(InputError, match="no readable safetensors"):
        module.load_adapter(tmp_path / "torn.safetensors")
    with pytest.raises(InputError, match=r"does not fit the UNet.*rank"):
        module.load_adapter(build(rank=2).save_adapter(tmp_path / "rank2"))
    with pytest.raises(InputError, match="target_modules"):
        module.load_adapter(build(target_modules="kohya").save_kohya(tmp_path / "all.safetensors"))
    with pytest.raises(InputError, match="text_encoder_rank > 0"):
        module.load_adapter(build(text_encoder_rank=2).save_adapter(tmp_path / "text"))
    part = load_file(module.save_kohya(tmp_path / "whole.safetensors"))
    part.pop(next(k for k in part if k.endswith("lora_up.weight")))
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="does not fit the UNet: 1 tensors"):
        module.load_adapter(tmp_path / "part.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in adapter(module).items())
