import random

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.modules.stable_diffusion.captions import shuffle_tags, vary_captions
from lightning_privacy.modules.stable_diffusion.draws import (
    keyed_draw,
    offset_noise,
    sequential_draw,
    stratified_draw,
)
from lightning_privacy.modules.stable_diffusion.encoding_cache import EncodingCache, content_key
from lightning_privacy.modules.stable_diffusion.sampling import picture_generators, picture_grid
from lightning_privacy.modules.stable_diffusion.weighting import diffuse, min_snr_weight, velocity

SHAPE = (4, 8, 8)


def test_keyed_draw_is_a_function_of_number_and_record_only():
    one = keyed_draw(7, [3, 1, 2], SHAPE, 1000)
    other = keyed_draw(7, [2, 3], SHAPE, 1000)
    assert torch.equal(one.timesteps[[2, 0]], other.timesteps) and torch.equal(one.noise[[2, 0]], other.noise)
    assert not torch.equal(one.noise, keyed_draw(8, [3, 1, 2], SHAPE, 1000).noise)


def test_keyed_draws_are_uniform_and_standard_normal():
    draw = keyed_draw(1, list(range(4000)), (1, 4, 4), 10)
    counts = torch.bincount(draw.timesteps, minlength=10).float()
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001
    assert abs(float(draw.noise.mean())) < 4 / 64000**0.5
    assert abs(float(draw.noise.var()) - 1) < 4 * (2 / 64000) ** 0.5
    neighbours = torch.corrcoef(torch.stack([draw.noise[:-1].flatten(), draw.noise[1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 4 / 64000**0.5


def test_sequential_draw_follows_the_generator():
    a, b = (sequential_draw(torch.Generator().manual_seed(s), 3, SHAPE, 1000) for s in (0, 0))
    assert torch.equal(a.noise, b.noise) and torch.equal(a.timesteps, b.timesteps)
    assert not torch.equal(a.noise[0], a.noise[1])


def test_stratified_draw_is_the_middle_of_each_stratum_and_fixed_per_record():
    draws = [stratified_draw([5, 6], i, 8, SHAPE, 1000) for i in range(8)]
    assert [int(d.timesteps[1]) for d in draws] == [62, 187, 312, 437, 562, 687, 812, 937]
    assert torch.equal(draws[0].noise[1], stratified_draw([6], 0, 8, SHAPE, 1000).noise[0])
    assert not torch.equal(draws[0].noise, draws[1].noise)


@pytest.mark.parametrize("records", [None, torch.tensor([4, 9])])
def test_offset_noise_adds_one_constant_per_record_and_channel(records):
    draw = keyed_draw(0, [4, 9], SHAPE, 1000)
    added = offset_noise(draw, 0.1, seeded_generator(1), records).noise - draw.noise
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-6)
    assert len(added[:, :, 0, 0].unique()) == 8 and 0.01 < float(added[:, :, 0, 0].std()) < 0.3
    assert offset_noise(draw, 0, seeded_generator(1), records) is draw


@pytest.fixture(scope="module")
def schedule():
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def test_noising_and_velocity_equal_diffusers(schedule):
    x, noise = torch.randn(2, 5, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 500, 998, 999])
    bar = schedule.alphas_cumprod[t]
    assert torch.allclose(diffuse(x, noise, bar), schedule.add_noise(x, noise, t), atol=1e-6)
    assert torch.allclose(velocity(x, noise, bar), schedule.get_velocity(x, noise, t), atol=1e-6)


def test_min_snr_weight_equals_the_closed_form(schedule):
    t = torch.arange(1000)
    snr = compute_snr(schedule, t)
    capped = torch.stack([snr, torch.full_like(snr, 5.0)], 1).min(1).values
    assert torch.allclose(min_snr_weight(schedule.alphas_cumprod, 5), capped / snr, rtol=1e-4)
    assert torch.allclose(min_snr_weight(schedule.alphas_cumprod, 5, True), capped / (snr + 1), rtol=1e-4)
    assert torch.equal(min_snr_weight(torch.zeros(1), 5), torch.ones(1))  # no signal left: weight 1, not NaN


def test_captions_vary_by_seed_step_and_record_alone():
    captions, records = ["a face, red, blue, green, big"] * 200, list(range(200))
    varied = vary_captions(captions, records, 0, 3, 0.25, True)
    assert vary_captions(captions[:3], [50, 7, 9], 0, 3, 0.25, True) == [varied[50], varied[7], varied[9]]
    assert 25 < varied.count("") < 75
    dropped = [i for i, c in enumerate(varied) if c == ""]
    plain = vary_captions(captions, records, 0, 3, 0.25, False)
    assert [i for i, c in enumerate(plain) if c == ""] == dropped and set(plain) == {"", captions[0]}
    assert varied != vary_captions(captions, records, 0, 4, 0.25, True)
    for caption in set(varied) - {""}:
        head, *rest = caption.split(", ")
        assert head == "a face" and sorted(rest) == ["big", "blue", "green", "red"]


def test_shuffle_keeps_the_first_tags():
    assert shuffle_tags("only one", random.Random(0)) == "only one"
    assert {shuffle_tags("a, b, c", random.Random(i), keep=3) for i in range(5)} == {"a, b, c"}


def counting(value: float):
    def encode(i: int) -> torch.Tensor:
        encode.calls += 1
        return torch.full((2,), value + i)

    encode.calls = 0
    return encode


def test_cache_counts_hits_and_shares_a_folder(tmp_path):
    encode, cache = counting(0.0), EncodingCache(tmp_path)
    keys = [content_key(x, "vae") for x in (torch.zeros(3), torch.ones(3), torch.zeros(3))]
    first = cache.get(keys, encode)
    assert (cache.hits, cache.misses, encode.calls) == (1, 2, 2) and torch.equal(first[0], first[2])
    other = EncodingCache(tmp_path)
    assert torch.equal(other.get(keys, counting(99.0)), first) and (other.hits, other.misses) == (3, 0)
    assert not list(tmp_path.rglob("*.part"))


def test_cache_key_depends_on_content_and_encoder():
    picture = torch.rand(3, 4, 4)
    keys = {content_key(picture, "a"), content_key(picture, "b"), content_key(picture + 1e-6, "a")}
    assert len(keys) == 3 and content_key(picture, "a") == content_key(picture.clone(), "a")
    assert content_key(torch.zeros(2, 8), "a") != content_key(torch.zeros(4, 4), "a")


def test_a_torn_file_is_encoded_anew(tmp_path):
    cache = EncodingCache(tmp_path)
    cache.get([content_key("x", "te")], counting(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    again = EncodingCache(tmp_path)
    assert torch.equal(again.get([content_key("x", "te")], counting(1.0)), torch.ones(1, 2)) and again.misses == 1
    assert EncodingCache(tmp_path).get([content_key("x", "te")], counting(9.0))[0, 0] == 1


def test_memory_is_bounded_and_drops_the_least_recently_used():
    cache = EncodingCache(max_bytes=16)  # two entries of two float32
    cache.get(["a", "b"], counting(0.0))
    cache.get(["a"], counting(5.0))
    cache.get(["c"], counting(7.0))  # drops b
    assert cache.get(["a"], counting(5.0))[0, 0] == 0 and cache.misses == 3
    cache.get(["b"], counting(0.0))
    assert cache.misses == 4


def test_entries_made_under_inference_mode_can_be_trained_on():
    cache, weight = EncodingCache(), torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        cache.get(["a"], lambda i: torch.ones(2) * 3)
    (cache.get(["a"], counting(0.0)) * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((2,), 3.0))


def test_picture_grid_places_pictures_row_by_row():
    pictures = torch.stack([torch.full((3, 4, 6), v) for v in (0.0, 0.2, 0.4)])
    grid = picture_grid(pictures, columns=2, gap=2)
    assert grid.size == (14, 10)
    assert [grid.getpixel(p) for p in ((0, 0), (8, 0), (0, 6), (8, 6), (6, 0))] == [
        (v, v, v) for v in (0, 51, 102, 255, 255)
    ]


def test_picture_generators_depend_on_the_index_alone():
    all_of_them = [torch.rand(2, generator=g) for g in picture_generators(3, 4)]
    assert torch.equal(torch.rand(2, generator=picture_generators(3, 1, start=2)[0]), all_of_them[2])
