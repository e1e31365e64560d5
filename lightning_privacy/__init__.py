"""Privacy and model-protection defences for PyTorch Lightning, each with the strongest attack against it."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.core.defence import Defence as Defence
    from lightning_privacy.core.manifest import load_defended as load_defended
    from lightning_privacy.core.results import AttackResult as AttackResult
    from lightning_privacy.protocols import Draw as Draw

__version__ = "0.1.0"

_WHERE = {
    "AttackResult": "lightning_privacy.core.results",
    "Defence": "lightning_privacy.core.defence",
    "Draw": "lightning_privacy.protocols",
    "load_defended": "lightning_privacy.core.manifest",
}
__all__ = ["AttackResult", "Defence", "Draw", "load_defended"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
