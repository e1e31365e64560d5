"""Data modules and the membership split that wraps any of them."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.datamodules.canaries import CanaryData as CanaryData
    from lightning_privacy.datamodules.client_part import ClientPart as ClientPart
    from lightning_privacy.datamodules.coco_detection import CocoDetection as CocoDetection
    from lightning_privacy.datamodules.digits import Digits as Digits
    from lightning_privacy.datamodules.faces import Faces as Faces
    from lightning_privacy.datamodules.image_caption_folder import ImageCaptionFolder as ImageCaptionFolder
    from lightning_privacy.datamodules.image_folder import ImageFolder as ImageFolder
    from lightning_privacy.datamodules.locked import LockedDataModule as LockedDataModule
    from lightning_privacy.datamodules.membership_split import MembershipSplit as MembershipSplit
    from lightning_privacy.datamodules.mnist5k import MNIST5k as MNIST5k
    from lightning_privacy.datamodules.public_pictures import PublicPictures as PublicPictures
    from lightning_privacy.datamodules.torchvision_images import TorchvisionImages as TorchvisionImages

_WHERE = {
    "CanaryData": "lightning_privacy.datamodules.canaries",
    "ClientPart": "lightning_privacy.datamodules.client_part",
    "CocoDetection": "lightning_privacy.datamodules.coco_detection",
    "Digits": "lightning_privacy.datamodules.digits",
    "Faces": "lightning_privacy.datamodules.faces",
    "ImageCaptionFolder": "lightning_privacy.datamodules.image_caption_folder",
    "ImageFolder": "lightning_privacy.datamodules.image_folder",
    "LockedDataModule": "lightning_privacy.datamodules.locked",
    "MNIST5k": "lightning_privacy.datamodules.mnist5k",
    "MembershipSplit": "lightning_privacy.datamodules.membership_split",
    "PublicPictures": "lightning_privacy.datamodules.public_pictures",
    "TorchvisionImages": "lightning_privacy.datamodules.torchvision_images",
}
__all__ = [
    "CanaryData",
    "ClientPart",
    "CocoDetection",
    "Digits",
    "Faces",
    "ImageCaptionFolder",
    "ImageFolder",
    "LockedDataModule",
    "MNIST5k",
    "MembershipSplit",
    "PublicPictures",
    "TorchvisionImages",
]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
