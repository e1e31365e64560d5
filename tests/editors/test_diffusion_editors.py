"""Editors with a diffusion model: the bundled tiny one, and InstructPix2Pix with random weights loaded as the real one is."""

import hashlib

import pytest
import torch
from PIL import Image

from lightning_privacy import resources
from lightning_privacy.editors import Img2ImgEditor, InpaintObjectEditor, InstructPix2PixEditor, LockSecret
from lightning_privacy.editors.inpaint import keyed_place
from lightning_privacy.editors.model_files import model_mark
from lightning_privacy.editors.sdedit import sdedit, text_states
from lightning_privacy.errors import InputError
from lightning_privacy.testing.single_file import write_single_file

SEED = bytes(range(32))
SECRET = LockSecret("a photo of person 3", SEED)
FAST = {"steps": 2, "strength": 1.0, "alpha": 1.0, "grid": "none"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(transformers|diffusers).*")


def pictures(n=3, size=64):
    # smooth, so that the autoencoder keeps something of them
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


@pytest.fixture(scope="module")
def tiny():
    return Img2ImgEditor.with_secret(SECRET, **FAST)


@pytest.fixture(scope="module")
def instruct_folder(tmp_path_factory):
    """A tiny InstructPix2Pix: the parts of the bundled model, and a random UNet with 8 input channels."""
    from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

    from lightning_privacy.modules.stable_diffusion.components import load_components

    parts = load_components("tiny")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    folder = tmp_path_factory.mktemp("instruct") / "model"
    pipeline = StableDiffusionInstructPix2PixPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, unet, parts.scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return str(folder)


def instruct(folder, secret=SECRET, **settings):
    fast = {"steps": 2, "edit_size": 32, "precision": "float32", "grid": "none", "alpha": 1.0}
    return InstructPix2PixEditor.with_secret(secret, pretrained=folder, **{**fast, **settings})


def check_editor(editor, wrong_keys, x):
    edited = editor.edit(x)
    assert edited.shape == x.shape and edited.min() >= 0 and edited.max() <= 1
    assert torch.equal(edited, editor.edit(x)), "not deterministic"
    one_by_one = torch.cat([editor.edit(x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(edited, one_by_one, atol=1e-4), (edited - one_by_one).abs().max()
    marks = {editor.fingerprint()}
    for wrong in wrong_keys:
        assert (wrong.edit(x) - edited).abs().mean() > 1e-4
        marks.add(wrong.fingerprint())
    assert len(marks) == 1 + len(wrong_keys)
    return edited


def test_image_to_image(tiny):
    wrong = [tiny.like(LockSecret("a bird", SEED)), tiny.decoy("wrong_seed"), tiny.decoy("wrong_prompt")]
    x, state = pictures(), torch.get_rng_state()
    edited = check_editor(tiny, wrong, x)
    assert torch.equal(state, torch.get_rng_state())
    assert (edited - x).abs().mean() > 0.05
    light = Img2ImgEditor.with_secret(SECRET, **{**FAST, "steps": 10, "strength": 0.1})
    light._shared = tiny._shared
    # a tenth of the schedule keeps more of the picture
    assert (light.edit(x) - x).abs().mean() < (edited - x).abs().mean() * 0.9
    assert tiny.model() is wrong[0].model()


def test_noise_of_a_picture_is_its_own_unless_it_is_fixed(tiny):
    """The same grey picture and a slightly changed one: with fixed noise the residues agree, with own noise they do not."""
    x = torch.full((2, 3, 64, 64), 0.5)
    x[1] += 2 / 255
    own, fixed = tiny, Img2ImgEditor.with_secret(SECRET, noise="fixed", **FAST)
    fixed._shared = tiny._shared
    gaps = {}
    for name, editor in {"own": own, "fixed": fixed}.items():
        residue = editor.edit(x) - x
        gaps[name] = (residue[0] - residue[1]).abs().mean()
    assert gaps["own"] > 5 * gaps["fixed"]


def test_the_object_stays_in_its_place(tiny):
    editor = InpaintObjectEditor.with_secret(SECRET, share=0.5, **FAST)
    editor._shared = tiny._shared
    x = pictures()
    edited = check_editor(editor, [editor.decoy("wrong_seed")], x)
    parts, place = tiny.model(), keyed_place(SECRET, (8, 8), 0.5)
    states, noise = text_states(parts, ["", "x"]), torch.randn(3, 4, 8, 8)
    # what lies under no mask has only been through the autoencoder
    with torch.no_grad():
        nowhere = sdedit(parts, x, states, noise, 1.0, 2, 2.0, torch.zeros(3, 1, 8, 8))
    changed = (edited - nowhere).abs().mean(1, keepdim=True)
    inside = torch.nn.functional.interpolate(place, 64, mode="nearest").expand(3, -1, -1, -1) > 0
    assert changed[inside].mean() > 3 * changed[~inside].mean()


def test_a_mask_may_be_given(tmp_path, tiny):
    Image.new("L", (20, 20), 255).save(tmp_path / "all.png")
    Image.new("L", (20, 20), 0).save(tmp_path / "none.png")
    (tmp_path / "no.png").write_text("no picture")
    whole = InpaintObjectEditor.with_secret(SECRET, mask=tmp_path / "all.png", **FAST)
    whole._shared = tiny._shared
    assert torch.allclose(whole.edit(pictures(1)), tiny.edit(pictures(1)), atol=1e-4)
    assert whole.settings()["mask"] != InpaintObjectEditor(mask=tmp_path / "none.png").settings()["mask"]
    empty = InpaintObjectEditor.with_secret(SECRET, mask=tmp_path / "none.png", **FAST)
    empty._shared = tiny._shared
    with pytest.raises(InputError, match=r"none\.png is white nowhere"):
        empty.edit(pictures(1))
    with pytest.raises(InputError, match=r"no\.png cannot be read"):
        InpaintObjectEditor(mask=tmp_path / "no.png").settings()


def test_grey_pictures_and_sizes(tiny):
    grey = pictures(1, 32)[:, :1]
    with pytest.raises(InputError, match="multiples of 16"):
        tiny.edit(pictures(1, 40))
    resized = Img2ImgEditor.with_secret(SECRET, edit_size=64, **FAST)
    resized._shared = tiny._shared
    assert resized.edit(pictures(1, 40)).shape == (1, 3, 40, 40)
    assert resized.edit(grey).shape == grey.shape
    with pytest.raises(InputError, match="1 or 3 channels"):
        resized.edit(torch.zeros(1, 2, 32, 32))


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_half_precision_is_near_and_another_key(tiny, precision):
    half = Img2ImgEditor.with_secret(SECRET, precision=precision, **FAST)
    x = pictures(1)
    assert (half.edit(x) - tiny.edit(x)).abs().mean() < 0.05
    assert half.fingerprint() != tiny.fingerprint()


def test_instruct_pix2pix_from_a_folder(instruct_folder):
    editor = instruct(instruct_folder)
    x = pictures(3, 48)
    wrong = [editor.like(LockSecret("a bird", SEED)), editor.decoy("wrong_seed")]
    check_editor(editor, wrong, x)
    small = instruct(instruct_folder, batch_size=2)
    assert torch.allclose(small.edit(x), editor.edit(x), atol=1e-4) and small.fingerprint() == editor.fingerprint()
    editor.release()
    assert torch.equal(editor.edit(x), check_editor(editor, [], x))


def test_instruct_pix2pix_from_a_single_file_edits_as_from_its_folder(tmp_path, instruct_folder):
    file = write_single_file(instruct_folder, tmp_path / "instruct.safetensors")
    x = pictures(2, 48)
    edited = instruct(str(file), pretrained_config=instruct_folder).edit(x)
    assert torch.equal(edited, instruct(instruct_folder).edit(x)) and not torch.equal(edited, x)


def test_instruct_pix2pix_is_the_pipeline_called_as_in_the_released_script(instruct_folder):
    """The same pixels as diffusers' pipeline, one picture and one fresh generator at a time, blended as bytes."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        instruct_folder, safety_checker=None, requires_safety_checker=False, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    editor = InstructPix2PixEditor.released(pretrained=instruct_folder, precision="float32", edit_size=32)
    editor = editor.like(LockSecret("with oil pastel", 1024))
    x = pictures(2, 32).mul(255).round().div(255)
    for edited, raw in zip(editor.edit(x), x, strict=True):
        image = Image.fromarray(raw.mul(255).round().byte().permute(1, 2, 0).numpy())
        e = pipeline(
            prompt="with oil pastel",
            image=image,
            num_inference_steps=5,
            image_guidance_scale=1.5,
            guidance_scale=4.5,
            generator=torch.Generator("cpu").manual_seed(1024),
            output_type="np",
        ).images[0]
        e = torch.from_numpy(e).permute(2, 0, 1).mul(255).round().double()
        blended = (0.5 * raw.mul(255).round().double() + 0.5 * e).clamp(0, 255).byte().float() / 255
        gap = (edited - blended).abs() * 255
        assert (
            gap.max() <= 1.001 and (gap > 0.5).float().mean() < 0.01
        )  # rounding within a batch moves few bytes by one


def test_models_that_do_not_fit_are_refused(tmp_path):
    tiny = str(resources.tiny_stable_diffusion())
    with pytest.raises(InputError, match="takes 4 channels"):
        instruct(tiny).edit(pictures(1))
    with pytest.raises(InputError, match="is a pickle"):
        instruct("model.ckpt").edit(pictures(1))
    with pytest.raises(InputError, match="could not be loaded"):
        instruct(str(tmp_path)).edit(pictures(1))
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"edit_size": 4}, {"strength": 0.0}):
        with pytest.raises(InputError, match="Img2ImgEditor"):
            Img2ImgEditor(**wrong)


def test_a_model_counts_by_its_content_not_by_its_place(tmp_path, instruct_folder):
    import shutil

    tiny = resources.tiny_stable_diffusion()
    shutil.copytree(tiny / "unet", tmp_path / "a" / "unet")
    shutil.copytree(tiny / "unet", tmp_path / "b" / "unet")
    assert model_mark(str(tmp_path / "a")) == model_mark(str(tmp_path / "b"))
    weights = next((tmp_path / "b").rglob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert hashlib.sha256(bytes(raw)).digest() and model_mark(str(tmp_path / "a")) != model_mark(instruct_folder)
    assert model_mark("owner/name") == "owner/name@main"
