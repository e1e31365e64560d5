"""Flower: a ClientApp and a ServerApp around Lightning, the mod that lets nothing else leave, and a run on one machine."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_privacy.errors import InputError
from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.federated.flower.client import client_app as client_app
    from lightning_privacy.federated.flower.mod import DefaultDeny as DefaultDeny
    from lightning_privacy.federated.flower.server import ServerParts as ServerParts
    from lightning_privacy.federated.flower.server import server_app as server_app

_WHERE = {
    "DefaultDeny": "lightning_privacy.federated.flower.mod",
    "ServerParts": "lightning_privacy.federated.flower.server",
    "client_app": "lightning_privacy.federated.flower.client",
    "server_app": "lightning_privacy.federated.flower.server",
}
__all__ = ["DefaultDeny", "ServerParts", "client_app", "require_flower", "server_app"]
_lazy, __dir__ = lazy_names(__name__, _WHERE)


def require_flower() -> None:
    """Refuse to go on without Flower.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("flwr") is None:
        raise InputError(
            "Flower is not installed, which runs the federation. Install it: `pip install 'lightning-privacy[flower]'`, in an "
            "environment of its own where its pinned dependencies conflict with yours."
        )


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        require_flower()
    return _lazy(name)
