"""What a pool of shadow models says of records."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["ShadowEvidence"]


@dataclass(frozen=True)
class ShadowEvidence:
    """Confidences of shadow models in the true class of records, and which of them were trained on each record.

    Args:
        record_ids: Identity of each record.
        confidence: phi = log(p_y / (1 - p_y)) of each query; see `scaled_confidence`.
        inside: Whether the shadow model was trained on the record.

    Example:
        >>> import torch
        >>> evidence = ShadowEvidence(("a", "b"), torch.tensor([[[1.0]], [[2.0]]]).double(), torch.ones(2, 1).bool())
        >>> evidence.take(["b"]).confidence.tolist()
        [[[2.0]]]
    """

    record_ids: tuple[str, ...]
    confidence: Float[Tensor, "records shadows queries"]
    inside: Bool[Tensor, "records shadows"]

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.record_ids)

    def take(self, record_ids: Sequence[str]) -> "ShadowEvidence":
        """Return the rows of some records, in the order asked for.

        Args:
            record_ids: Identities; one may come twice.

        Raises:
            InputError: one of them was not observed.
        """
        place = {record: row for row, record in enumerate(self.record_ids)}
        if missing := [record for record in record_ids if record not in place]:
            raise InputError(
                f"{len(missing)} records were not observed under the shadow models (first: {missing[0][:12]}); name "
                "their roles in `ShadowPool.observe(roles=...)`."
            )
        rows = [place[record] for record in record_ids]
        return ShadowEvidence(tuple(record_ids), self.confidence[rows], self.inside[rows])
