"""Data modules and the membership split that wraps any of them."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.datamodules.faces import Faces as Faces
    from lightning_privacy.datamodules.image_caption_folder import ImageCaptionFolder as ImageCaptionFolder
    from lightning_privacy.datamodules.membership_split import MembershipSplit as MembershipSplit
    from lightning_privacy.datamodules.public_pictures import PublicPictures as PublicPictures

_WHERE = {
    "Faces": "lightning_privacy.datamodules.faces",
    "ImageCaptionFolder": "lightning_privacy.datamodules.image_caption_folder",
    "MembershipSplit": "lightning_privacy.datamodules.membership_split",
    "PublicPictures": "lightning_privacy.datamodules.public_pictures",
}
__all__ = ["Faces", "ImageCaptionFolder", "MembershipSplit", "PublicPictures"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
