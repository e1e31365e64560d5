"""Where a batch holds the declared sensitive attribute of its records, and how it is set to another value."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.callbacks.audits.signals import pooled_map
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.import_path import import_object
from lightning_privacy.errors import InputError

__all__ = ["DeclaredAttribute", "SplitWithValue"]


@dataclass(frozen=True)
class DeclaredAttribute:
    """Where a batch says what its records' sensitive attribute is, and how it is set to another value.

    Args:
        where: Key of a mapping, place in a tuple, or a function (batch) -> whole number of each record; a text with a
            dot or a colon is the import path of such a function.
        put: Function (batch, value) -> batch in which every record has the value, or its import path; not needed for a
            key or a place.
        known: Function (batch) -> features of each record, or its import path: what is known without the model. None
            for the pictures, averaged to at most 8 by 8 pixels.

    Example:
        >>> declared = DeclaredAttribute("smoker")
        >>> declared.with_value({"smoker": torch.tensor([0, 1])}, 1)["smoker"].tolist()
        [1, 1]
    """

    where: str | int | Any
    put: str | Any | None = None
    known: str | Any | None = None

    @property
    def function(self) -> Callable[[Any], Any] | None:
        """The function that reads it, None where it is an entry of the batch."""
        if isinstance(self.where, int) or (isinstance(self.where, str) and not set(".:") & set(self.where)):
            return None
        return import_object(self.where)

    @property
    def name(self) -> str:
        """The attribute's name in texts."""
        return getattr(self.where, "__name__", str(self.where))

    def values(self, batch: Any, records: int) -> Int[Tensor, " records"]:
        """Return the attribute of each record of a batch, on the CPU.

        Args:
            batch: A batch as the loader yields it.
            records: How many records it holds.

        Raises:
            InputError: it is absent, or is not one whole number a record.
        """
        function = self.function
        found = self._entry(batch) if function is None else function(batch)
        if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
            kind = found.dtype if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InputError(
                f"The sensitive attribute `{self.name}` is {kind}; it must be a tensor of whole numbers, one a record: "
                "number the categories, or cut a quantity into bins, in the datamodule or in a function."
            )
        if found.shape != (records,):
            raise InputError(
                f"The sensitive attribute `{self.name}` has shape {tuple(found.shape)} in a batch of {records} records; "
                f"it must be one whole number a record, shape ({records},)."
            )
        return found.long().cpu()

    def with_value(self, batch: Any, value: int) -> Any:
        """Return the batch with every record's attribute set to a value."""
        if self.put is not None:
            return import_object(self.put)(batch, value)
        new = torch.full_like(self._entry(batch), value)
        if isinstance(batch, Mapping):
            return {**batch, self.where: new}
        parts = list(batch)
        parts[self._place(batch)] = new
        return type(batch)(parts)

    def known_of(self, batch: Any) -> Float[Tensor, "records features"]:
        """Return what is known of each record of a batch without the model, on the CPU.

        Raises:
            InputError: it is not one row of finite numbers a record.
        """
        if self.known is None:
            return pooled_map(images_of(batch).float()).cpu()
        found = import_object(self.known)(batch)
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.isfinite().all():
            kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"`known` returned {kind}, or numbers that are not finite; return one row of finite numbers a record."
            )
        return found.float().cpu()

    def _place(self, batch: Any) -> Any:
        # The command line gives a place in a tuple as text.
        text = isinstance(self.where, str) and self.where.lstrip("-").isdecimal()
        return int(self.where) if text and not isinstance(batch, Mapping) else self.where

    def _entry(self, batch: Any) -> Any:
        place = self._place(batch)
        if isinstance(batch, Mapping):
            there, listed = place in batch, f"a mapping with {sorted(map(str, batch))}"
        else:
            long = len(batch) if isinstance(batch, list | tuple) else 0
            there = isinstance(place, int) and -long <= place < long
            listed = f"a {type(batch).__name__}" + (f" of {long}" if long else "")
        if not there:
            raise InputError(
                f"The batch is {listed}, in which there is no sensitive attribute `{self.name}`. Set `attribute` to its "
                "key (or place in a tuple); or let the data yield it (`TorchvisionImages` with `name: CelebA, sensitive: "
                "Male` does, under `sensitive`); or set `attribute` to the import path of a function (batch) -> one whole "
                'number a record, which can look records up by `batch["record"]`.'
            )
        return batch[place]


class SplitWithValue:
    """A split whose records all have one value of the attribute; the rest of a record is as it was.

    Args:
        split: The set-up split.
        declared: The attribute.
        value: The value.
    """

    def __init__(self, split: Any, declared: DeclaredAttribute, value: int) -> None:
        self.split, self.declared, self.value = split, declared, value
        self.roles, self.record_ids, self.split_hash = split.roles, split.record_ids, split.split_hash

    def indices(self, role: str) -> list[int]:
        """Return the dataset indices of a role."""
        return role_indices(self.split, role)

    def loader(self, role: str, batch_size: int | None = None) -> Iterator[Any]:
        """Return the records of a role once, in fixed order."""
        return (self.declared.with_value(batch, self.value) for batch in self.split.loader(role, batch_size))
