"""All callbacks: defences, audits, quality, reporting. Importing this package registers names and imports no class."""

from typing import TYPE_CHECKING

from lightning_privacy.core.registry import register_audit, register_defence
from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.callbacks.adversarial_inversion.callback import AdversarialInversion as AdversarialInversion
    from lightning_privacy.callbacks.audits.attribute import AttributeAudit as AttributeAudit
    from lightning_privacy.callbacks.audits.class_inversion import ClassInversionAudit as ClassInversionAudit
    from lightning_privacy.callbacks.audits.detection_lock import DetectionLockAudit as DetectionLockAudit
    from lightning_privacy.callbacks.audits.inversion import InversionAudit as InversionAudit
    from lightning_privacy.callbacks.audits.leakage import LeakageAudit as LeakageAudit
    from lightning_privacy.callbacks.audits.lock import LockAudit as LockAudit
    from lightning_privacy.callbacks.audits.membership import MembershipAudit as MembershipAudit
    from lightning_privacy.callbacks.audits.structural import StructuralAudit as StructuralAudit
    from lightning_privacy.callbacks.bido.callback import BiDO as BiDO
    from lightning_privacy.callbacks.canaries.callback import CanaryAudit as CanaryAudit
    from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise as ClipAndNoise
    from lightning_privacy.callbacks.gradient_bottleneck.callback import GradientBottleneck as GradientBottleneck
    from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise as GradientNoise
    from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning as GradientPruning
    from lightning_privacy.callbacks.key_lock.callback import KeyLock as KeyLock
    from lightning_privacy.callbacks.key_lock.private_affine import PrivateAffine as PrivateAffine
    from lightning_privacy.callbacks.model_lock.callback import ModelLock as ModelLock
    from lightning_privacy.callbacks.negative_label_smoothing.callback import (
        NegativeLabelSmoothing as NegativeLabelSmoothing,
    )
    from lightning_privacy.callbacks.noise_tap.callback import NoiseTap as NoiseTap
    from lightning_privacy.callbacks.nopeek.callback import NoPeek as NoPeek
    from lightning_privacy.callbacks.quality.image_quality import ImageQuality as ImageQuality
    from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA as SMPLoRA
    from lightning_privacy.callbacks.sparse_coding.callback import SparseCoding as SparseCoding
    from lightning_privacy.callbacks.variational_bottleneck.callback import (
        VariationalBottleneck as VariationalBottleneck,
    )

_WHERE = {
    "AdversarialInversion": "lightning_privacy.callbacks.adversarial_inversion.callback",
    "AttributeAudit": "lightning_privacy.callbacks.audits.attribute",
    "BiDO": "lightning_privacy.callbacks.bido.callback",
    "CanaryAudit": "lightning_privacy.callbacks.canaries.callback",
    "ClassInversionAudit": "lightning_privacy.callbacks.audits.class_inversion",
    "ClipAndNoise": "lightning_privacy.callbacks.clip_and_noise.callback",
    "DetectionLockAudit": "lightning_privacy.callbacks.audits.detection_lock",
    "GradientBottleneck": "lightning_privacy.callbacks.gradient_bottleneck.callback",
    "GradientNoise": "lightning_privacy.callbacks.gradient_noise.callback",
    "GradientPruning": "lightning_privacy.callbacks.gradient_pruning.callback",
    "ImageQuality": "lightning_privacy.callbacks.quality.image_quality",
    "InversionAudit": "lightning_privacy.callbacks.audits.inversion",
    "KeyLock": "lightning_privacy.callbacks.key_lock.callback",
    "LeakageAudit": "lightning_privacy.callbacks.audits.leakage",
    "LockAudit": "lightning_privacy.callbacks.audits.lock",
    "MembershipAudit": "lightning_privacy.callbacks.audits.membership",
    "ModelLock": "lightning_privacy.callbacks.model_lock.callback",
    "NegativeLabelSmoothing": "lightning_privacy.callbacks.negative_label_smoothing.callback",
    "NoPeek": "lightning_privacy.callbacks.nopeek.callback",
    "NoiseTap": "lightning_privacy.callbacks.noise_tap.callback",
    "PrivateAffine": "lightning_privacy.callbacks.key_lock.private_affine",
    "SMPLoRA": "lightning_privacy.callbacks.smp_lora.callback",
    "SparseCoding": "lightning_privacy.callbacks.sparse_coding.callback",
    "StructuralAudit": "lightning_privacy.callbacks.audits.structural",
    "VariationalBottleneck": "lightning_privacy.callbacks.variational_bottleneck.callback",
}
__all__ = [
    "AdversarialInversion",
    "AttributeAudit",
    "BiDO",
    "CanaryAudit",
    "ClassInversionAudit",
    "ClipAndNoise",
    "DetectionLockAudit",
    "GradientBottleneck",
    "GradientNoise",
    "GradientPruning",
    "ImageQuality",
    "InversionAudit",
    "KeyLock",
    "LeakageAudit",
    "LockAudit",
    "MembershipAudit",
    "ModelLock",
    "NegativeLabelSmoothing",
    "NoPeek",
    "NoiseTap",
    "PrivateAffine",
    "SMPLoRA",
    "SparseCoding",
    "StructuralAudit",
    "VariationalBottleneck",
]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)

register_defence(
    "adversarial_inversion", "lightning_privacy.callbacks.adversarial_inversion.callback:AdversarialInversion"
)
register_defence("bido", "lightning_privacy.callbacks.bido.callback:BiDO")
register_defence("key_lock", "lightning_privacy.callbacks.key_lock.callback:KeyLock")
register_defence("model_lock", "lightning_privacy.callbacks.model_lock.callback:ModelLock")
register_defence("private_affine", "lightning_privacy.callbacks.key_lock.private_affine:PrivateAffine")
register_defence(
    "negative_label_smoothing", "lightning_privacy.callbacks.negative_label_smoothing.callback:NegativeLabelSmoothing"
)
register_defence("noise_tap", "lightning_privacy.callbacks.noise_tap.callback:NoiseTap")
register_defence("nopeek", "lightning_privacy.callbacks.nopeek.callback:NoPeek")
register_defence("smp_lora", "lightning_privacy.callbacks.smp_lora.callback:SMPLoRA")
register_defence("sparse_coding", "lightning_privacy.callbacks.sparse_coding.callback:SparseCoding")
register_defence(
    "variational_bottleneck", "lightning_privacy.callbacks.variational_bottleneck.callback:VariationalBottleneck"
)

register_defence("clip_and_noise", "lightning_privacy.callbacks.clip_and_noise.callback:ClipAndNoise")
register_defence("gradient_bottleneck", "lightning_privacy.callbacks.gradient_bottleneck.callback:GradientBottleneck")
register_defence("gradient_noise", "lightning_privacy.callbacks.gradient_noise.callback:GradientNoise")
register_defence("gradient_pruning", "lightning_privacy.callbacks.gradient_pruning.callback:GradientPruning")
register_audit("membership", "lightning_privacy.callbacks.audits.membership:MembershipAudit")
register_audit("inversion", "lightning_privacy.callbacks.audits.inversion:InversionAudit")
register_audit("class_inversion", "lightning_privacy.callbacks.audits.class_inversion:ClassInversionAudit")
register_audit("leakage", "lightning_privacy.callbacks.audits.leakage:LeakageAudit")
register_audit("detection_lock", "lightning_privacy.callbacks.audits.detection_lock:DetectionLockAudit")
register_audit("lock", "lightning_privacy.callbacks.audits.lock:LockAudit")
register_audit("structural", "lightning_privacy.callbacks.audits.structural:StructuralAudit")
register_audit("attribute", "lightning_privacy.callbacks.audits.attribute:AttributeAudit")
register_audit("canaries", "lightning_privacy.callbacks.canaries.callback:CanaryAudit")
register_audit("quality", "lightning_privacy.callbacks.quality.image_quality:ImageQuality")
