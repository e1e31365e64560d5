"""What defence, data and attacks ask of an editor that holds a key."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["KeyedEditor"]


@runtime_checkable
class KeyedEditor(Protocol):
    """Changes pictures in a way that only the holder of a key can repeat."""

    def edit(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return edited pictures, blended and clipped already.

        Args:
            images: Values in [0, 1]. For one key and device the result is a function of each picture alone.
        """
        ...

    def fingerprint(self) -> str:
        """Return the sha256 of the whole key, public and secret: the same for the same edits, fit to be published."""
        ...
