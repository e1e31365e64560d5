"""All callbacks: defences, audits, quality, reporting. Importing this package registers names and imports no class."""

from typing import TYPE_CHECKING

from lightning_privacy.core.registry import register_audit, register_defence
from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.callbacks.audits.attribute import AttributeAudit as AttributeAudit
    from lightning_privacy.callbacks.audits.membership import MembershipAudit as MembershipAudit
    from lightning_privacy.callbacks.audits.structural import StructuralAudit as StructuralAudit
    from lightning_privacy.callbacks.canaries.callback import CanaryAudit as CanaryAudit
    from lightning_privacy.callbacks.quality.image_quality import ImageQuality as ImageQuality
    from lightning_privacy.callbacks.smp_lora.callback import SMPLoRA as SMPLoRA

_WHERE = {
    "AttributeAudit": "lightning_privacy.callbacks.audits.attribute",
    "CanaryAudit": "lightning_privacy.callbacks.canaries.callback",
    "ImageQuality": "lightning_privacy.callbacks.quality.image_quality",
    "MembershipAudit": "lightning_privacy.callbacks.audits.membership",
    "SMPLoRA": "lightning_privacy.callbacks.smp_lora.callback",
    "StructuralAudit": "lightning_privacy.callbacks.audits.structural",
}
__all__ = ["AttributeAudit", "CanaryAudit", "ImageQuality", "MembershipAudit", "SMPLoRA", "StructuralAudit"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)

register_defence("smp_lora", "lightning_privacy.callbacks.smp_lora.callback:SMPLoRA")

register_audit("membership", "lightning_privacy.callbacks.audits.membership:MembershipAudit")
register_audit("structural", "lightning_privacy.callbacks.audits.structural:StructuralAudit")
register_audit("attribute", "lightning_privacy.callbacks.audits.attribute:AttributeAudit")
register_audit("canaries", "lightning_privacy.callbacks.canaries.callback:CanaryAudit")
register_audit("quality", "lightning_privacy.callbacks.quality.image_quality:ImageQuality")
