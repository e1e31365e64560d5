"""Raw pictures, and edits with guessed keys: the most accurate on the attacker's own pictures is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked, accuracy_of
from lightning_privacy.errors import InputError

__all__ = ["GuessedEdit", "NoKey", "PromptDictionary"]

Pictures = Float[Tensor, "n channels height width"]
Edit = Callable[[Pictures], Pictures]
_FIRST = 16  # pictures on which a whole dictionary is tried, chosen here
_FINALISTS = 5  # guesses that are tried on all, chosen here


@dataclass(frozen=True)
class NoKey:
    """Shows the model raw pictures: its accuracy is LP."""

    name: ClassVar[str] = "no_key"
    access: ClassVar[str] = "queries"

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model itself; see `LockAttack`."""
        reached = accuracy_of(model.scores, own.val_images, own.val_labels)
        return Unlocked(model.scores, reached, Cost(queries=len(own.val_images)))


@dataclass(frozen=True)
class GuessedEdit:
    """Shows the model pictures edited with one guessed key.

    Args:
        name: In results: ``wrong_prompt``, ``wrong_seed``, ``empty_prompt``, ``other_editor``, ...
        edit: Edits with the guess.
    """

    name: str
    edit: Edit
    access: ClassVar[str] = "queries and the editor, not its key"

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the edit; see `LockAttack`."""
        n = len(own.val_images)
        reached = accuracy_of(lambda x: model.scores(self.edit(x)), own.val_images, own.val_labels)
        return Unlocked(lambda x: model.scores(self.edit(x)), reached, Cost(edits=n, queries=n), edit=self.edit)


@dataclass(frozen=True)
class PromptDictionary:
    """Tries a list of prompts on its own labelled pictures and takes the best: all on a few, the first five on all of them.

    Args:
        edits: Edits by prompt.

    Raises:
        InputError: the list is empty.
    """

    edits: Mapping[str, Edit]
    name: ClassVar[str] = "prompt_dictionary"
    access: ClassVar[str] = "queries, the editor and a list of prompts"

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("A prompt dictionary needs at least one prompt.")

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the best edit; see `LockAttack`."""

        def reached(edit: Edit, most: int) -> float:
            return accuracy_of(lambda x: model.scores(edit(x)), own.val_images[:most], own.val_labels[:most])

        few, n = min(_FIRST, len(own.val_images)), len(own.val_images)
        order = sorted(self.edits, key=lambda prompt: -reached(self.edits[prompt], few))
        final = order[:_FINALISTS]
        prompt = max(final, key=lambda each: reached(self.edits[each], n))
        edit = self.edits[prompt]
        tried = few * len(self.edits) + n * len(final)
        cost = Cost(edits=tried, queries=tried)
        # The prompt may be the owner's: how many were tried is said, and not which one it was.
        chosen = f"1 of {len(self.edits)} prompts"
        return Unlocked(lambda x: model.scores(edit(x)), reached(edit, n), cost, chosen, edit=edit)
