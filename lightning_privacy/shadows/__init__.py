"""Shadow models: models trained like the target on known halves of the records, as yardsticks of membership attacks."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.shadows.evidence import ShadowEvidence as ShadowEvidence
    from lightning_privacy.shadows.pool import ShadowPool as ShadowPool

_WHERE = {
    "ShadowEvidence": "lightning_privacy.shadows.evidence",
    "ShadowPool": "lightning_privacy.shadows.pool",
}
__all__ = ["ShadowEvidence", "ShadowPool"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
