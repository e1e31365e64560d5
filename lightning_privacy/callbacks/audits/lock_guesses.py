"""Keys that an attacker with the editor would guess."""

from collections.abc import Callable
from typing import Any

from lightning_privacy.attacks.lock.guessing import GuessedEdit, PromptDictionary
from lightning_privacy.editors.editor import Editor
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.editors.published import published_prompts

__all__ = ["Guess", "guesses_for"]

Guess = GuessedEdit | PromptDictionary

_SEED = 1024  # that of the released script: what anyone would try
_UNSEEN = -1  # number of a wrong key that no model was trained against: those of `decoys` count from 0


def guesses_for(editor: Editor, names: tuple[str, ...], other: Editor | None = None) -> list[Guess]:
    """Return attacks that edit with guessed keys.

    The owner's prompt enters none but ``other_editor``, which grants it; a seed that everybody knows is granted, a secret
    one is not. ``wrong_prompt`` grants the seed whatever it is, so that it shows what the prompt alone is worth, and
    ``wrong_seed`` the prompt.

    Args:
        editor: With the key.
        names: Which are wanted: ``wrong_prompt``, ``wrong_seed``, ``empty_prompt``, ``prompt_dictionary``,
            ``other_editor``.
        other: Another editor, for the last.
    """
    made: list[Guess] = []
    by_prompt = editor.takes == "prompt"
    known = editor.secret.seed if isinstance(editor.secret.seed, int) else _SEED
    for name in names:
        if name in ("wrong_prompt", "wrong_seed") and name in editor.decoys:
            made.append(GuessedEdit(name, editor.decoy(name, _UNSEEN).edit))
        elif name == "empty_prompt" and by_prompt:
            made.append(GuessedEdit(name, editor.like(LockSecret("", known)).edit))
        elif name == "prompt_dictionary" and by_prompt:
            edits: dict[str, Callable[[Any], Any]] = {
                each.prompt: editor.like(LockSecret(each.prompt, known)).edit for each in published_prompts()
            }
            made.append(PromptDictionary(edits))
        elif name == "other_editor" and other is not None:
            seed = known if by_prompt else editor.secret.seed
            made.append(GuessedEdit(name, other.like(LockSecret(editor.secret.prompt, seed)).edit))
    return made
