"""What a client of NVIDIA FLARE may send, judged without importing it."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lightning_privacy.federated.deny import LeakRefusedError, SecretScan, as_tensors, refuse_unasked

__all__ = ["METRICS", "WEIGHTS", "Outgoing"]

WEIGHTS = ("WEIGHTS", "WEIGHT_DIFF")
METRICS = "METRICS"
_LONGEST_TEXT, _MOST_NUMBERS = 256, 8  # of what goes beside the weights, chosen here: less than any key


class Outgoing:
    """The check of one client's results; it remembers what the server sent with the task.

    Args:
        owner: Who refuses, for errors.
        metrics: Names of the numbers that may be sent.
    """

    def __init__(self, owner: str, metrics: Collection[str] = ()) -> None:
        self.owner, self.metrics = owner, frozenset(metrics)
        self.asked: dict[str, tuple[int, ...]] = {}
        self._scan = SecretScan(owner)

    def begin(self, sent: Mapping[str, Any]) -> None:
        """Note what the server sent with a task.

        Args:
            sent: Arrays by name; nothing, where the task came without weights.
        """
        self.asked = {name: tuple(value.shape) for name, value in as_tensors(sent).items()}

    def check(self, kind: str, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Refuse a result that holds more than weights under the names of those that came, and numbers that may be known.

        Args:
            kind: ``WEIGHTS``, ``WEIGHT_DIFF`` or ``METRICS``.
            data: Arrays, or numbers, by name.
            meta: What goes beside them.

        Raises:
            LeakRefusedError: it does.

        Example:
            >>> outgoing = Outgoing("example")
            >>> outgoing.begin({"head": [1.0, 2.0]})
            >>> outgoing.check("WEIGHT_DIFF", {"head": [0.0, 0.5]}, {"NUM_STEPS_CURRENT_ROUND": 3})
        """
        if kind in WEIGHTS:
            shapes = {name: tuple(value.shape) for name, value in as_tensors(data).items()}
            refuse_unasked(shapes, self.asked, self.owner)
        elif kind == METRICS:
            self._check_metrics(data)
        else:
            raise LeakRefusedError(
                f"{self.owner} refused to send data of the kind {kind}: a client sends {', '.join(WEIGHTS)} and {METRICS}."
            )
        self._check_beside(meta, "meta")

    def search(self, everything: Any, secrets: Mapping[str, Tensor | str]) -> None:
        """Refuse a result in which a secret can be found.

        Args:
            everything: All that is about to be sent.
            secrets: By name.

        Raises:
            LeakRefusedError: one was found.
        """
        self._scan.refuse(everything, secrets)

    def _check_metrics(self, data: Mapping[str, Any]) -> None:
        wrong = sorted(k for k, v in data.items() if k not in self.metrics or not _is_number(v))
        if wrong:
            raise LeakRefusedError(
                f"{self.owner} refused to send {wrong[:5]}: a client tells single numbers, and those are "
                f"{', '.join(sorted(self.metrics)) or 'none'}. Name it in `metrics` if the server may know it."
            )

    def _check_beside(self, value: Any, place: str) -> None:
        if isinstance(value, Mapping):
            self._check_number_of(len(value), place)
            for name, inner in value.items():
                self._check_beside(inner, f"{place}.{name}")
        elif isinstance(value, list | tuple):
            self._check_number_of(len(value), place)
            for inner in value:
                self._check_beside(inner, place)
        elif not (value is None or _is_number(value) or (isinstance(value, str) and len(value) <= _LONGEST_TEXT)):
            raise LeakRefusedError(
                f"{self.owner} refused to send `{place}`, a {type(value).__name__}: beside the weights go numbers and "
                "short texts."
            )

    def _check_number_of(self, entries: int, place: str) -> None:
        if entries > _MOST_NUMBERS:
            raise LeakRefusedError(
                f"{self.owner} refused to send `{place}` with {entries} entries: beside the weights go {_MOST_NUMBERS} at most."
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    return getattr(value, "shape", None) == () and hasattr(value, "item") and not isinstance(value, bytes)
