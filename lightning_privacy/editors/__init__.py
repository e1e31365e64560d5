"""Editors that change pictures by a key: diffusion models with a secret prompt, and cheap keyed transforms."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.editors.blocks import NegativePositiveEditor as NegativePositiveEditor
    from lightning_privacy.editors.blocks import PixelShuffleEditor as PixelShuffleEditor
    from lightning_privacy.editors.editor import Editor as Editor
    from lightning_privacy.editors.img2img import Img2ImgEditor as Img2ImgEditor
    from lightning_privacy.editors.inpaint import InpaintObjectEditor as InpaintObjectEditor
    from lightning_privacy.editors.instruct_pix2pix import InstructPix2PixEditor as InstructPix2PixEditor
    from lightning_privacy.editors.lock_key import LockKey as LockKey
    from lightning_privacy.editors.lock_key import LockSecret as LockSecret
    from lightning_privacy.editors.lock_key import check_same_key as check_same_key
    from lightning_privacy.editors.protocol import KeyedEditor as KeyedEditor
    from lightning_privacy.editors.published import published_prompts as published_prompts
    from lightning_privacy.editors.tones import OverlayEditor as OverlayEditor
    from lightning_privacy.editors.tones import ToneCurveEditor as ToneCurveEditor

_WHERE = {
    "Editor": "lightning_privacy.editors.editor",
    "Img2ImgEditor": "lightning_privacy.editors.img2img",
    "InpaintObjectEditor": "lightning_privacy.editors.inpaint",
    "InstructPix2PixEditor": "lightning_privacy.editors.instruct_pix2pix",
    "KeyedEditor": "lightning_privacy.editors.protocol",
    "LockKey": "lightning_privacy.editors.lock_key",
    "LockSecret": "lightning_privacy.editors.lock_key",
    "NegativePositiveEditor": "lightning_privacy.editors.blocks",
    "OverlayEditor": "lightning_privacy.editors.tones",
    "PixelShuffleEditor": "lightning_privacy.editors.blocks",
    "ToneCurveEditor": "lightning_privacy.editors.tones",
    "check_same_key": "lightning_privacy.editors.lock_key",
    "published_prompts": "lightning_privacy.editors.published",
}
__all__ = [
    "Editor",
    "Img2ImgEditor",
    "InpaintObjectEditor",
    "InstructPix2PixEditor",
    "KeyedEditor",
    "LockKey",
    "LockSecret",
    "NegativePositiveEditor",
    "OverlayEditor",
    "PixelShuffleEditor",
    "ToneCurveEditor",
    "check_same_key",
    "published_prompts",
]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
