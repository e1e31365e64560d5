import copy
import pickle
import re

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from lightning_privacy.errors import InputError
from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA
from lightning_privacy.modules.stable_diffusion.lora import is_lora_key
from lightning_privacy.modules.stable_diffusion.weighting import min_snr_weight
from lightning_privacy.protocols import (
    Draw,
    GeneratesImages,
    HasPerSampleError,
    HasPerSampleLoss,
    HasReference,
    HasSampleDraw,
)


def draw_for(module, batch, seed=0):
    return module.sample_draw(batch, torch.Generator().manual_seed(seed))


def test_it_has_all_protocols(build):
    module = build()
    for protocol in (HasSampleDraw, HasPerSampleError, HasPerSampleLoss, HasReference, GeneratesImages):
        assert isinstance(module, protocol)


def test_unconfigured_module_holds_no_weights_and_copies(tiny_folder):
    module = StableDiffusionLoRA(str(tiny_folder), rank=2, alpha=1)
    assert not list(module.parameters())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert dict(twin.hparams) == dict(module.hparams)
        group = twin.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-2)
    assert all(isinstance(v, str | int | float | bool | list | None) for v in module.hparams.values())


def test_configured_module_copies_deeply(build, batch):
    module = build(trained=True)
    twin, draw = copy.deepcopy(module), draw_for(module, batch)
    assert torch.equal(twin.per_sample_error(batch, draw), module.per_sample_error(batch, draw))
    twin.train()
    assert not twin.unet.training and all(a is not b for a, b in zip(twin.modules(), module.modules(), strict=True))


def test_adapters_start_from_the_seed_alone_and_leave_random_state_alone(build):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(seed=4, text_encoder_rank=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, third = build(seed=4, text_encoder_rank=2), build(seed=5, text_encoder_rank=2)
    pairs = [(n, p, dict(second.named_parameters())[n]) for n, p in first.named_parameters() if is_lora_key(n)]
    assert pairs and all(torch.equal(p, q) for _, p, q in pairs)
    assert any(not torch.equal(p, dict(third.named_parameters())[n]) for n, p, _ in pairs)
    state = {n: id(p) for n, p in first.named_parameters()}
    first.configure_model()
    assert {n: id(p) for n, p in first.named_parameters()} == state


def test_error_map_equals_one_computed_by_hand_with_diffusers(build, batch):
    module = build()
    draw = draw_for(module, batch)
    with torch.no_grad():
        x = module.vae.encode(batch["image"] * 2 - 1).latent_dist.mean * module.vae.config.scaling_factor
        tokens = module.tokenizer(batch["caption"], padding="max_length", max_length=24, return_tensors="pt").input_ids
        states = module.text_encoder(tokens)[0]
        noised = module.scheduler.add_noise(x, draw.noise, draw.timesteps)
        expected = (module.unet(noised, draw.timesteps, states).sample - draw.noise) ** 2
    error = module.per_sample_error(batch, draw)
    assert error.shape == (3, 4, 8, 8) and error.dtype == torch.float32
    assert torch.allclose(error, expected, atol=1e-5)
    assert torch.allclose(module.per_sample_loss(batch, draw), expected.mean((1, 2, 3)), atol=1e-5)


def test_v_prediction_compares_with_the_velocity(build, batch, velocity_folder):
    module = build(pretrained=str(velocity_folder))
    draw = draw_for(module, batch)
    with torch.no_grad():
        x = module.encode_images(batch["image"])
        noised = module.scheduler.add_noise(x, draw.noise, draw.timesteps)
        target = module.scheduler.get_velocity(x, draw.noise, draw.timesteps)
        out = module.unet(noised, draw.timesteps, module.encode_text(batch["caption"])).sample
    assert torch.allclose(module.per_sample_error(batch, draw), (out - target) ** 2, atol=1e-5)
    weighted = build(pretrained=str(velocity_folder), min_snr_gamma=5)
    weights = min_snr_weight(weighted.alphas_cumprod[draw.timesteps], 5, True)
    ratio = weighted.per_sample_loss(batch, draw) / module.per_sample_loss(batch, draw)
    assert torch.allclose(ratio, weights, rtol=1e-4)


def test_min_snr_weights_the_loss_but_not_the_raw_error(build, batch):
    plain, weighted = build(), build(min_snr_gamma=1.0)
    draw = Draw(torch.tensor([10, 300, 900]), draw_for(plain, batch).noise)
    assert torch.equal(plain.per_sample_error(batch, draw), weighted.per_sample_error(batch, draw))
    weights = min_snr_weight(plain.alphas_cumprod[draw.timesteps], 1.0)
    assert torch.allclose(weighted.per_sample_loss(batch, draw), weights * plain.per_sample_loss(batch, draw))
    assert weights[0] < 0.1 and weights[2] == 1


def test_draws_do_not_depend_on_the_company_of_a_record(build, batch):
    module = build()
    whole = draw_for(module, batch)
    part = draw_for(module, {"image": batch["image"][1:], "record": batch["record"][1:]})
    assert torch.equal(whole.noise[1:], part.noise) and torch.equal(whole.timesteps[1:], part.timesteps)
    generator = torch.Generator().manual_seed(0)
    first, second = (module.sample_draw(batch, generator) for _ in range(2))
    assert torch.equal(first.noise, whole.noise) and not torch.equal(second.noise, whole.noise)
    anonymous = {"image": batch["image"]}
    assert not torch.equal(draw_for(module, anonymous).noise, whole.noise)
    assert torch.equal(draw_for(module, anonymous).noise, draw_for(module, anonymous).noise)


def test_encodings_are_computed_once_and_do_not_depend_on_the_company(build, batch, tmp_path):
    module = build(cache_dir=str(tmp_path))
    together = module.encode_images(batch["image"]), module.encode_text(batch["caption"])
    caches = module.encoder.latents, module.encoder.states
    assert [(c.hits, c.misses) for c in caches] == [(0, 3), (0, 3)]
    module.encode_images(batch["image"].clone())
    module.encode_text(batch["caption"][::-1])
    assert [(c.hits, c.misses) for c in caches] == [(3, 3), (3, 3)]
    module.encode_images(batch["image"].flip(3))
    assert caches[0].misses == 6

    other = build()
    assert torch.equal(other.encode_images(batch["image"][1:2])[0], together[0][1])
    assert torch.equal(other.encode_text(batch["caption"][1:2])[0], together[1][1])
    on_disk = build(cache_dir=str(tmp_path))
    assert torch.equal(on_disk.encode_images(batch["image"]), together[0])
    assert (on_disk.encoder.latents.hits, on_disk.encoder.latents.misses) == (3, 0)
    skipping = build(cache_dir=str(tmp_path), clip_skip=1)
    skipping.encode_text(batch["caption"])
    assert skipping.encoder.states.misses == 3  # another encoder setting is another address


def test_clip_skip_normalises_an_earlier_layer(build, batch):
    module = build(clip_skip=1)
    tokens = module.tokenizer(batch["caption"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    output = module.text_encoder(tokens, output_hidden_states=True)
    inner = getattr(module.text_encoder, "text_model", module.text_encoder)
    expected = inner.final_layer_norm(output.hidden_states[-2])
    assert torch.allclose(module.encode_text(batch["caption"]), expected, atol=1e-5)
    assert not torch.allclose(expected, output.last_hidden_state, atol=1e-2)
    with pytest.raises(InputError, match="has only 2 layers"):
        build(clip_skip=2)


def test_gradient_reaches_adapters_only(build, batch):
    module = build(trained=True, text_encoder_rank=2)
    module.per_sample_loss(batch, draw_for(module, batch)).mean().backward()
    for name, p in module.named_parameters():
        assert p.requires_grad == is_lora_key(name)
        if is_lora_key(name):
            assert p.dtype == torch.float32 and float(p.grad.abs().max()) > 0
        else:
            assert p.grad is None
    assert any(n.startswith("text_encoder.") and is_lora_key(n) for n, _ in module.named_parameters())


@pytest.mark.parametrize("text_rank", [0, 2])
def test_reference_is_the_base_model_and_restores(build, batch, text_rank):
    base, module = build(), build(trained=True, text_encoder_rank=text_rank)
    draw = draw_for(base, batch)
    tuned = module.per_sample_error(batch, draw)
    expected = base.per_sample_error(batch, draw)  # up matrices are zero
    with module.reference() as same, module.reference():
        assert same is module
        inside = module.per_sample_error(batch, draw)
    assert torch.allclose(inside, expected, atol=1e-5 if text_rank else 0, rtol=0)
    assert not torch.allclose(tuned, expected, atol=1e-3)
    with pytest.raises(RuntimeError, match="boom"), module.reference():
        raise RuntimeError("boom")
    with module.reference():
        with module.reference():
            pass
        assert torch.equal(module.per_sample_error(batch, draw), inside)
    assert torch.equal(module.per_sample_error(batch, draw), tuned)
    assert all(p.requires_grad for n, p in module.named_parameters() if is_lora_key(n))


def test_reference_between_forward_and_backward_does_not_touch_gradients(build, batch):
    module, draw = build(trained=True), None
    draw = draw_for(module, batch)
    grads = []
    for look in (False, True):
        module.zero_grad()
        loss = module.per_sample_loss(batch, draw).mean()
        if look:
            with torch.no_grad(), module.reference():
                module.per_sample_loss(batch, draw)
        loss.backward()
        grads.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_pictures_depend_on_seed_and_index_not_on_batch_size(build):
    module = build(trained=True, dropout=0.5).train()
    state, modes = torch.get_rng_state(), [m.training for m in module.modules()]
    prompts = [f"a photo of person {i}" for i in range(3)]
    pictures = module.generate(prompts, seed=3, steps=3, guidance=2.0, batch_size=3)
    assert pictures.shape == (3, 3, 16, 16) and 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    single = module.generate(prompts, seed=3, steps=3, guidance=2.0, batch_size=1)
    assert torch.allclose(single, pictures, atol=1e-5)
    assert torch.allclose(module.generate(prompts[:2], seed=3, steps=3, guidance=2.0), pictures[:2], atol=1e-5)
    assert not torch.allclose(module.generate(prompts, seed=4, steps=3, guidance=2.0), pictures, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in module.modules()] == modes
    assert module.generate(prompts[:1], steps=1, size=32).shape == (1, 3, 32, 32)
    assert module.generate(prompts[:1], steps=1, size=(16, 32)).shape == (1, 3, 16, 32)
    assert module.generate([], steps=1).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_equal_diffusers_own_pipeline(build, tiny_folder, guidance):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from lightning_privacy.modules.stable_diffusion.sampling import picture_generators

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a photo of person 21"
    (generator,) = picture_generators(9, 1)
    out = pipeline(prompt, num_inference_steps=5, guidance_scale=guidance, generator=generator, output_type="pt").images
    # Which kernel multiplies the matrices differs by processor and layout, so that the last bits may.
    torch.testing.assert_close(out, build().generate([prompt], seed=9, steps=5, guidance=guidance), rtol=0, atol=1e-5)


def test_frozen_parts_stay_in_evaluation_mode_and_dropout_follows(build):
    module = build(dropout=0.1).train()
    assert module.training and not any(p.training for p in (module.unet, module.vae, module.text_encoder))
    dropouts = [m for n, m in module.named_modules() if isinstance(m, torch.nn.Dropout) and "lora_dropout" in n]
    assert dropouts and all(m.training for m in dropouts)
    module.unet.add_module("inserted", torch.nn.Dropout(0.5))  # what a defence inserts follows the mode
    assert module.eval().train().unet.inserted.training and not module.eval().unet.inserted.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_frozen_weights_may_be_stored_coarsely_adapters_never(build, batch, dtype):
    module = build(trained=True, frozen_dtype=dtype, text_encoder_rank=2)
    dtypes = {is_lora_key(n): p.dtype for n, p in module.unet.named_parameters()}
    assert dtypes == {True: torch.float32, False: getattr(torch, dtype)}
    assert {p.dtype for p in module.vae.parameters()} == {torch.float32}
    error = module.per_sample_error(batch, draw_for(module, batch))
    exact = build(trained=True, text_encoder_rank=2).per_sample_error(batch, draw_for(module, batch))
    assert error.dtype == torch.float32 and torch.allclose(error, exact, atol=0.3) and not torch.equal(error, exact)
    error.mean().backward()
    assert all(p.grad is not None for n, p in module.named_parameters() if is_lora_key(n))
    assert build(frozen_dtype=dtype).generate(["a face"], steps=1).isfinite().all()
    assert module.base_fingerprint == build().base_fingerprint


def test_checkpointed_gradients_are_equal_and_attention_is_sdpa(build, batch):
    grads = []
    for flag in (False, True):
        module = build(trained=True, gradient_checkpointing=flag).train()
        assert module.unet.is_gradient_checkpointing == flag
        assert {type(p) for p in module.unet.attn_processors.values()} == {AttnProcessor2_0}
        module.per_sample_loss(batch, draw_for(module, batch)).mean().backward()
        grads.append([p.grad for p in module.parameters() if p.grad is not None])
    assert len(grads[0]) > 10 and all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def test_targets_by_word_and_by_name(build):
    def adapted(**options):
        names = [n for n, _ in build(**options).unet.named_parameters() if "lora_A" in n]
        stems = [n.split(".lora_A")[0].split("transformer_blocks.0.")[-1] for n in names]
        return {re.sub(r".*attentions\.\d\.", "", stem) for stem in stems}

    attention = {f"attn{i}.{n}" for i in (1, 2) for n in ("to_q", "to_k", "to_v", "to_out.0")}
    assert adapted() == attention
    assert adapted(target_modules="kohya") == attention | {"ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"}
    assert adapted(target_modules=["to_q"]) == {"attn1.to_q", "attn2.to_q"}
    with pytest.raises(InputError, match=r"names 'to_x'.*to_k"):
        build(target_modules=["to_q", "to_x"])


def test_text_adapters_spare_skipped_layers(build, batch):
    module = build(clip_skip=1, text_encoder_rank=2, target_modules="kohya", trained=True)
    names = [n for n, p in module.text_encoder.named_parameters() if p.requires_grad]
    assert names and all("layers.0." in n for n in names) and any("fc1" in n for n in names)
    module.per_sample_loss(batch, draw_for(module, batch)).mean().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_alpha_is_in_proportion_and_up_matrices_start_at_zero(build, batch, init):
    module = build(rank=4, alpha=2, text_encoder_rank=8, init=init)
    assert (module.alpha, module.text_encoder_alpha, build(rank=8).alpha) == (2.0, 4.0, 8.0)
    assert all(not p.any() for n, p in module.named_parameters() if "lora_B" in n)
    assert all(p.any() for n, p in module.named_parameters() if "lora_A" in n)


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"caption_dropout": 1.5}, {"val_timesteps": 0}, {"clip_skip": -1}, {"target_modules": "all"}]
)
def test_bad_settings_are_one_clear_error(build, bad):
    with pytest.raises(Exception, match=next(iter(bad))):
        build(**bad)


def test_bad_batches_are_one_clear_error(build, batch):
    module = build()
    with pytest.raises(InputError, match="multiples of 2"):
        module.per_sample_error({**batch, "image": torch.rand(3, 3, 15, 16)})
    with pytest.raises(InputError, match="`image` and `caption`"):
        module.per_sample_error({"image": batch["image"]})
    with pytest.raises(InputError, match="sample_draw"):
        module.per_sample_error(batch, Draw())


def test_adapters_start_on_the_cpu_whatever_the_device_context(build, tiny_folder):
    module = StableDiffusionLoRA(str(tiny_folder), rank=4)
    with torch.device("meta"):  # Lightning enters the accelerator's context around `configure_model`
        module.configure_model()
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    pairs = zip(module.state_dict().items(), build().state_dict().items(), strict=True)
    assert all(k == m and torch.equal(v, w) for (k, v), (m, w) in pairs)


def test_compiling_is_in_place_and_keeps_names(build):
    module = build(compile_unet=True)
    assert module.unet._compiled_call_impl is not None and build().unet._compiled_call_impl is None
    assert module.state_dict().keys() == build().state_dict().keys()


def test_the_command_line_knows_every_argument_and_the_optimizer_defaults():
    import inspect

    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(StableDiffusionLoRA, "model")
    text = " ".join(parser.format_help().split())
    for name in list(inspect.signature(StableDiffusionLoRA.__init__).parameters)[1:]:
        assert f"--model.{name}" in text
    assert "more rank, more capacity and more memorisation" in text and "advanced every step" in text
    config = parser.parse_args(["--model.optimizer.lr=0.002", "--model.target_modules=[to_q]", "--model.alpha=3"])
    assert config.model.optimizer.init_args.weight_decay == 0.01
    module = parser.instantiate(config).model
    assert (module.target_modules, module.alpha, module.rank) == (["to_q"], 3.0, 32)
    for twin in (module, pickle.loads(pickle.dumps(module))):
        assert twin.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.002
