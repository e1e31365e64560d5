"""The keyed transforms: deterministic, keyed, one picture at a time, blended and clipped as promised."""

import pytest
import torch

from lightning_privacy.editors import (
    KeyedEditor,
    LockSecret,
    NegativePositiveEditor,
    OverlayEditor,
    PixelShuffleEditor,
    ToneCurveEditor,
)
from lightning_privacy.editors.blending import blend
from lightning_privacy.editors.blocks import from_blocks, to_blocks
from lightning_privacy.errors import InputError

EDITORS = [NegativePositiveEditor, OverlayEditor, PixelShuffleEditor, ToneCurveEditor]
ONE, OTHER = LockSecret(seed=bytes(range(32))), LockSecret(seed=bytes(range(1, 33)))


def pictures(n=3, size=8, channels=3):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)


@pytest.mark.parametrize("cls", EDITORS)
def test_an_edit_depends_on_the_picture_and_the_key_alone(cls):
    x = pictures()
    editor, again, wrong = (cls.with_secret(s) for s in (ONE, ONE, OTHER))
    assert isinstance(editor, KeyedEditor)
    edited = editor.edit(x)
    assert edited.shape == x.shape and edited.dtype == x.dtype and edited.min() >= 0 and edited.max() <= 1
    assert torch.equal(edited, again.edit(x)) and editor.fingerprint() == again.fingerprint()
    assert not torch.equal(edited, wrong.edit(x)) and editor.fingerprint() != wrong.fingerprint()
    assert not torch.equal(edited, x)
    assert torch.equal(edited, torch.cat([editor.edit(x[i : i + 1]) for i in range(3)]))
    assert editor.edit(x[:0]).shape == (0, 3, 8, 8)
    assert torch.equal(editor.decoy("wrong_seed").edit(x), editor.decoy("wrong_seed").edit(x))
    assert not torch.equal(editor.decoy("wrong_seed").edit(x), editor.decoy("wrong_seed", 1).edit(x))
    assert not torch.equal(editor.decoy("wrong_seed").edit(x), edited)
    state = torch.get_rng_state()
    editor.edit(x)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cls", EDITORS)
def test_one_channel_and_no_square_and_gradients(cls):
    x = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edited = cls.with_secret(ONE).edit(x)
    assert edited.shape == x.shape and not edited.requires_grad


def test_the_transforms_do_what_they_say():
    x = pictures(1)
    rows, shuffled = to_blocks(x, 4), to_blocks(PixelShuffleEditor.with_secret(ONE, block=4).edit(x), 4)
    assert torch.allclose(rows.sort(-1).values, shuffled.sort(-1).values)
    turned = to_blocks(NegativePositiveEditor.with_secret(ONE, block=4).edit(x), 4)
    negative = torch.isclose(turned, 1 - rows, atol=1e-3) & ~torch.isclose(rows, torch.tensor(0.5), atol=0.003)
    assert torch.isclose(turned[~negative], rows[~negative], atol=1e-3).all() and 0.3 < negative.float().mean() < 0.6
    assert torch.equal(from_blocks(rows, (8, 8), 4), x)
    changed = (OverlayEditor.with_secret(ONE, size=0.5).edit(x) != x).any(1)
    assert changed.sum() == 16  # of 64 pixels


@pytest.mark.parametrize("grid", ["none", "round", "truncate"])
def test_blending_and_the_grid(grid):
    x = pictures()
    whole = PixelShuffleEditor.with_secret(ONE, grid="none").edit(x)
    half = PixelShuffleEditor.with_secret(ONE, alpha=0.25, grid=grid).edit(x)
    exact = 0.75 * x + 0.25 * whole
    assert torch.allclose(half, exact, atol={"none": 1e-6, "round": 0.51 / 255, "truncate": 1.01 / 255}[grid])
    if grid != "none":
        assert torch.allclose(half * 255, (half * 255).round(), atol=1e-4)
    if grid == "truncate":
        # byte arithmetic as numpy's astype("uint8") does it
        a, b = (v.double().mul(255).round().numpy() for v in (x, whole))
        assert torch.equal(half, torch.from_numpy((0.75 * a + 0.25 * b).astype("uint8")).float() / 255)
    assert torch.equal(blend(x, whole, 1, "none"), whole)


def test_what_cannot_be_edited_is_refused():
    with pytest.raises(InputError, match="do not divide into blocks of 3"):
        PixelShuffleEditor.with_secret(ONE, block=3).edit(pictures())
    with pytest.raises(InputError, match=r"values from -1 to"):
        PixelShuffleEditor.with_secret(ONE).edit(pictures() * 2 - 1)
    with pytest.raises(InputError, match="pictures with values from nan"):
        PixelShuffleEditor.with_secret(ONE).edit(pictures() * float("nan"))
    for wrong in ({"alpha": 0}, {"alpha": 1.5}, {"block": 0}):
        with pytest.raises(InputError, match="PixelShuffleEditor"):
            PixelShuffleEditor(**wrong)
    with pytest.raises(InputError, match="points"):
        ToneCurveEditor(points=1)
    with pytest.raises(InputError, match="size"):
        OverlayEditor(size=0)
    with pytest.raises(InputError, match="no decoys of kind 'wrong_prompt'"):
        PixelShuffleEditor.with_secret(ONE).decoy("wrong_prompt")
