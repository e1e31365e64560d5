"""NVIDIA FLARE's hook on a client's results: what was not sent does not leave."""

from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable  # pyright: ignore[reportMissingImports]
from nvflare.apis.dxo_filter import DXOFilter  # pyright: ignore[reportMissingImports]
from nvflare.apis.event_type import EventType  # pyright: ignore[reportMissingImports]
from nvflare.apis.fl_constant import FLContextKey, ReturnCode  # pyright: ignore[reportMissingImports]
from nvflare.apis.fl_context import FLContext  # pyright: ignore[reportMissingImports]
from nvflare.apis.shareable import Shareable, make_reply  # pyright: ignore[reportMissingImports]

from lightning_privacy.federated.deny import LeakRefusedError
from lightning_privacy.federated.nvflare.outgoing import METRICS, WEIGHTS, Outgoing
from lightning_privacy.federated.private_state import PrivateState

__all__ = ["DefaultDenyFilter"]

_DXO = "DXO"


class DefaultDenyFilter(DXOFilter):
    """A filter for a client's task results: nothing leaves but weights that the server sent, and numbers that it may know.

    Where it refuses, FLARE reports ``TASK_RESULT_FILTER_ERROR`` and sends no data. Unlike FLARE's ``ExcludeVars`` nothing has
    to be named that must not leave, and results that are no DXO are refused as well. Add it last among the output filters:
    ``recipe.add_client_output_filter(DefaultDenyFilter("private"), tasks=["train"])``. Filters that encrypt come after it.

    Args:
        private: The client's private folder (see `PrivateState`), whose secrets are searched for; a path on the client.
        metrics: Names of the numbers that may be sent.
    """

    def __init__(self, private: str, metrics: list[str] | None = None) -> None:
        super().__init__(supported_data_kinds=None, data_kinds_to_filter=None)
        self.private, self.metrics = private, metrics
        self._outgoing: Outgoing | None = None

    @property
    def outgoing(self) -> Outgoing:
        """The check; made where it runs, so that a job's description holds the arguments alone."""
        if self._outgoing is None:
            self._outgoing = Outgoing(type(self).__name__, self.metrics or ())
        return self._outgoing

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Note what came with a task before it is carried out."""
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            self.outgoing.begin(_weights_of(fl_ctx.get_prop(FLContextKey.TASK_DATA)))

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Check a result and return it as it is; of one that failed nothing is left but the return code.

        Raises:
            LeakRefusedError: it may not leave.
        """
        code = shareable.get_return_code()
        if code != ReturnCode.OK:
            return make_reply(code)
        try:
            dxo = from_shareable(shareable)
        except Exception as wrong:
            raise LeakRefusedError(
                f"{type(self).__name__} refused to send a result that is no DXO, which it cannot look into. Return weights as "
                "a DXO (`FLModel` does)."
            ) from wrong
        if others := sorted(str(k) for k in shareable if k != _DXO and not str(k).startswith("__")):
            raise LeakRefusedError(f"{type(self).__name__} refused to send {others[:5]}, which stand beside the DXO.")
        self._check_all(dxo, shareable, fl_ctx)
        self.outgoing.search(dict(shareable), PrivateState(self.private).secrets())
        return shareable

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Check one object of a result; it is never changed.

        Raises:
            LeakRefusedError: it may not leave.
        """
        self.outgoing.check(_kind(dxo), dxo.data, dxo.meta or {})

    def _check_all(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        # Not by the base class, which passes objects without data, whatever stands beside it.
        if dxo.data_kind != DataKind.COLLECTION:
            self.process_dxo(dxo, shareable, fl_ctx)
            return
        self.outgoing.check(METRICS, {}, dxo.meta or {})
        for inner in dxo.data.values():
            self._check_all(inner, shareable, fl_ctx)


def _kind(dxo: DXO) -> str:
    return str(getattr(dxo.data_kind, "value", dxo.data_kind))


def _weights_of(task: Any) -> Mapping[str, Any]:
    """Return the weights in a task, also of several objects in one."""
    try:
        dxo = from_shareable(task)
    except Exception:  # a task without weights: nothing was sent, and nothing may come back
        return {}
    found: dict[str, Any] = {}
    for each in dxo.data.values() if dxo.data_kind == DataKind.COLLECTION else [dxo]:
        if _kind(each) in WEIGHTS:
            found |= each.data
    return found
