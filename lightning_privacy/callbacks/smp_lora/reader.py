"""From batches to what the proxy reads: errors now, errors before fine-tuning, features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.smp_lora.auxiliary import AuxiliaryBatches
from lightning_privacy.callbacks.smp_lora.observer import ModelObserver
from lightning_privacy.callbacks.smp_lora.proxy import ProxyInput, read_error
from lightning_privacy.core.ranks import gather_rows, world_size
from lightning_privacy.protocols import Draw

__all__ = ["FeatureReader", "Observation"]


@dataclass(frozen=True)
class Observation:
    """The model's errors on a batch.

    Args:
        batch: The batch.
        error: Raw error of each record, (batch, ...), or (batch, draws, ...) for ``multi_t``.
        draw: What it was measured on.
        place: The batch's place in the bank; None outside it.
    """

    batch: Any
    error: Float[Tensor, "batch ..."]
    draw: Draw
    place: int | None = None


class FeatureReader:
    """Observe batches and turn them into the proxy's features.

    Args:
        observer: Evaluates the module.
        auxiliary: Names the draws.
        proxy: What the proxy reads.
        draws: Draws a record for ``multi_t``.
    """

    def __init__(self, observer: ModelObserver, auxiliary: AuxiliaryBatches, proxy: ProxyInput, draws: int) -> None:
        self.observer, self.auxiliary, self.draws = observer, auxiliary, draws
        self.proxy: ProxyInput = proxy
        self._known: dict[int, Tensor] = {}  # of all ranks, in rank order, so that one rank's checkpoint serves all

    def observe(
        self,
        module: L.LightningModule,
        batch: Any,
        error: Tensor | None = None,
        draw: Draw | None = None,
        place: int | None = None,
    ) -> Observation:
        """Return the errors of a batch.

        Args:
            module: The user's module.
            batch: A batch.
            error: Errors that are known already.
            draw: What they were measured on.
            place: The batch's place in the bank.
        """
        observed = [(error, draw)] if error is not None and draw is not None else []
        count = self.draws if self.proxy == "multi_t" else 1
        for number in range(count - len(observed)):
            drawn = self.observer.draw(module, batch, *self.auxiliary.key(number, place))
            observed.append((self.observer.error(module, batch, drawn), drawn))
        first, drawn = observed[0]
        errors = torch.stack([error for error, _ in observed], 1) if self.proxy == "multi_t" else first
        return Observation(batch, errors, drawn, place)

    def features(self, module: L.LightningModule, *observations: Observation) -> list[Float[Tensor, "n features"]]:
        """Return the proxy's features of each observation, with the graph of its errors."""
        references = (
            self._references(module, observations) if self.proxy == "calibrated" else [None] * len(observations)
        )
        with torch.autocast(observations[0].error.device.type, enabled=False):
            return [
                read_error(self.proxy, seen.error, reference, seen.draw)
                for seen, reference in zip(observations, references, strict=True)
            ]

    def state_dict(self) -> dict[int, Tensor]:
        """Return the references of the bank: computed again, in other company, they could differ in the last bit."""
        return {place: rows.cpu() for place, rows in self._known.items()}

    def load_state_dict(self, state: dict[int, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._known = dict(state)

    def _references(self, module: L.LightningModule, observations: Sequence[Observation]) -> list[Tensor]:
        """Return the reference's mean error of each record."""
        found = [self._remembered(seen) for seen in observations]
        asked = [seen for seen, known in zip(observations, found, strict=True) if known is None]
        answers = iter(self.observer.references(module, [(seen.batch, seen.draw) for seen in asked]))
        references = []
        for seen, known in zip(observations, found, strict=True):
            if known is None:  # an error of one number a record has no second dimension
                answer = next(answers)
                reference = answer.reshape(len(answer), -1).mean(1, keepdim=True)
            else:
                reference = known
            if known is None and seen.place is not None:
                self._known[seen.place] = gather_rows(reference)
            references.append(reference)
        return references

    def _remembered(self, seen: Observation) -> Tensor | None:
        place, mine = seen.place, len(seen.error)
        if place is None or place not in self._known:
            return None
        rows = self._known[place]
        if len(rows) != mine * world_size():  # another batch size than before the resume
            return None
        self._known[place] = rows = rows.to(seen.error.device)  # after a resume: moved once, not at every step
        return rows[self.auxiliary.trainer.global_rank * mine :][:mine]
