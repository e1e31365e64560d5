"""NVIDIA FLARE: a filter on what a client sends, which lets nothing pass but what the server sent."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_privacy.errors import InputError
from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.federated.nvflare.filter import DefaultDenyFilter as DefaultDenyFilter
    from lightning_privacy.federated.nvflare.outgoing import Outgoing as Outgoing

_WHERE = {
    "DefaultDenyFilter": "lightning_privacy.federated.nvflare.filter",
    "Outgoing": "lightning_privacy.federated.nvflare.outgoing",
}
__all__ = ["DefaultDenyFilter", "Outgoing"]
_lazy, __dir__ = lazy_names(__name__, _WHERE)


def __getattr__(name: str) -> Any:
    if name == "DefaultDenyFilter" and find_spec("nvflare") is None:
        raise InputError(
            "NVIDIA FLARE is not installed, whose filter this is. Install it: `pip install 'lightning-privacy[nvflare]'`."
        )
    return _lazy(name)
