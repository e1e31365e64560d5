"""All callbacks: defences, audits, quality, reporting. Importing this package registers names and imports no class."""

from typing import TYPE_CHECKING

from lightning_privacy.core.registry import register_audit, register_defence
from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.callbacks.adversarial_inversion.callback import AdversarialInversion as AdversarialInversion
    from lightning_privacy.callbacks.audits.attribute import AttributeAudit as AttributeAudit
    from lightning_privacy.callbacks.audits.inversion import InversionAudit as InversionAudit
    from lightning_privacy.callbacks.audits.membership import MembershipAudit as MembershipAudit
    from lightning_privacy.callbacks.audits.structural import StructuralAudit as StructuralAudit
    from lightning_privacy.callbacks.bido.callback import BiDO as BiDO
    from lightning_privacy.callbacks.canaries.callback import CanaryAudit as CanaryAudit
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
    "ImageQuality": "lightning_privacy.callbacks.quality.image_quality",
    "InversionAudit": "lightning_privacy.callbacks.audits.inversion",
    "MembershipAudit": "lightning_privacy.callbacks.audits.membership",
    "NegativeLabelSmoothing": "lightning_privacy.callbacks.negative_label_smoothing.callback",
    "NoPeek": "lightning_privacy.callbacks.nopeek.callback",
    "NoiseTap": "lightning_privacy.callbacks.noise_tap.callback",
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
    "ImageQuality",
    "InversionAudit",
    "MembershipAudit",
    "NegativeLabelSmoothing",
    "NoPeek",
    "NoiseTap",
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

register_audit("membership", "lightning_privacy.callbacks.audits.membership:MembershipAudit")
register_audit("inversion", "lightning_privacy.callbacks.audits.inversion:InversionAudit")
register_audit("structural", "lightning_privacy.callbacks.audits.structural:StructuralAudit")
register_audit("attribute", "lightning_privacy.callbacks.audits.attribute:AttributeAudit")
register_audit("canaries", "lightning_privacy.callbacks.canaries.callback:CanaryAudit")
register_audit("quality", "lightning_privacy.callbacks.quality.image_quality:ImageQuality")
