"""The base of editors: opens the key, blends, and keeps the secret out of what is printed, copied and pickled."""

import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.blending import Grid, blend, check_grid, check_pictures
from lightning_privacy.editors.decoys import decoy_secret
from lightning_privacy.editors.lock_key import LockKey, LockSecret
from lightning_privacy.editors.secret_entry import Takes, create_secret, read_secret
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["Editor"]

Pictures = Float[Tensor, "batch channels height width"]


class Editor:
    """Edits pictures by a key, as `KeyedEditor` asks.

    A subclass sets `name` and `takes`, and implements `settings` (everything public that the edit depends on) and `apply`.
    The secret is read when the first picture is edited or the fingerprint is asked for. A copy by pickle has none and reads
    it anew.

    Args:
        key: ``vault:PATH#NAME`` or ``env:NAME``. None for an editor that gets its secret by `with_secret`.
        create: Make vault and entry where they are absent, when a run begins.
        alpha: Share of the edit in the result, 0 to 1.
        grid: Whether results are multiples of 1/255: ``none``, ``round``, or ``truncate`` as in the released script.

    Raises:
        InputError: an argument is out of range, or the reference is none.
    """

    name: ClassVar[str] = ""
    takes: ClassVar[Takes] = "seed"

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        alpha: float | int = 1.0,
        grid: Grid = "round",
    ) -> None:
        if not 0 < alpha <= 1:
            raise InputError(f"{type(self).__name__}: `alpha` is {alpha}; the edit's share lies above 0, at most 1.")
        check_grid(grid, type(self).__name__)
        self.key_ref = None if key is None else SecretRef(key)
        self.create, self.alpha = create, alpha
        self.grid: Grid = grid
        self._shared: dict[str, Any] = {"device": torch.device("cpu")}  # with the editors that `like` returns
        self._secret: LockSecret | None = None
        self._mark = ""

    # --- what a subclass implements ------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return the public settings that the edit depends on, besides `alpha` and `grid`, as plain values."""
        raise NotImplementedError

    def apply(self, images: Pictures, secret: LockSecret) -> Pictures:
        """Return the pictures, edited and not blended.

        Args:
            images: Values in [0, 1], on `device`.
            secret: The secret part of the key.
        """
        raise NotImplementedError

    # --- the key -------------------------------------------------------------------------------------------------

    @classmethod
    def with_secret(cls, secret: LockSecret, **settings: Any) -> "Editor":
        """Return an editor whose secret is in memory alone.

        Args:
            secret: Prompt and seed.
            **settings: Further arguments of the class.
        """
        editor = cls(**settings)
        editor._secret = secret
        return editor

    def like(self, secret: LockSecret) -> "Editor":
        """Return the same editor with another secret; device and model are shared.

        Args:
            secret: Prompt and seed.
        """
        twin = copy.copy(self)
        twin.key_ref, twin._secret, twin._mark = None, secret, ""
        return twin

    @property
    def secret(self) -> LockSecret:
        """The secret part of the key.

        Raises:
            InputError: it is nowhere, or is not what this editor needs.
        """
        if self._secret is None:
            if self.key_ref is None:
                raise InputError(
                    f"{type(self).__name__} has no key. Give `key: vault:PATH#NAME` (and `create: true` for a new one), or "
                    "in Python `with_secret(LockSecret(...))`."
                )
            self._secret = read_secret(self.key_ref, self.takes)
        if self.takes == "prompt" and self._secret.prompt is None:
            raise InputError(f"{type(self).__name__} edits by a prompt, and its key has none. Give `prompt`.")
        return self._secret

    def create_key(self) -> bool:
        """Make the vault's entry where the editor was told to and it is absent; call it on one process.

        Returns:
            Whether a key was made.
        """
        if not self.create or self.key_ref is None or self._secret is not None:
            return False
        return create_secret(self.key_ref, self.takes)

    def public(self) -> dict[str, Any]:
        """Return the public part of the key."""
        return {"editor": self.name, **self.settings(), "alpha": float(self.alpha), "grid": self.grid}

    def key(self) -> LockKey:
        """Return the whole key."""
        settings = self.public()
        return LockKey(settings.pop("editor"), settings, self.secret)

    def fingerprint(self) -> str:
        """Return the sha256 of the key, computed once."""
        if not self._mark:
            self._mark = self.key().fingerprint()
        return self._mark

    @property
    def decoys(self) -> tuple[str, ...]:
        """What kinds of wrong keys there are for this editor."""
        return ("wrong_prompt", "wrong_seed") if self.takes == "prompt" else ("wrong_seed",)

    def decoy(self, kind: str, number: int = 0) -> "Editor":
        """Return the same editor with a wrong key, a function of the key, the kind and the number.

        Args:
            kind: One of `decoys`.
            number: Which of them.

        Raises:
            InputError: there is no such kind.
        """
        if kind not in self.decoys:
            raise InputError(f"{type(self).__name__} has no decoys of kind {kind!r}, only {', '.join(self.decoys)}.")
        return self.like(decoy_secret(self.secret, kind, number))

    # --- editing -------------------------------------------------------------------------------------------------

    def edit(self, images: Pictures) -> Pictures:
        """Return edited pictures on the device and in the type of the given ones, blended and clipped.

        No gradient passes.

        Args:
            images: Values in [0, 1].
        """
        check_pictures(images, type(self).__name__)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            pictures = images.detach().to(self.device, torch.float32)
            edited = self.apply(pictures, self.secret) if len(pictures) else pictures
            return blend(pictures, edited.float().clamp(0, 1), self.alpha, self.grid).to(images)

    @property
    def device(self) -> torch.device:
        """Where pictures are edited."""
        return self._shared["device"]

    def to(self, device: torch.device | str) -> "Editor":
        """Edit on another device from now on, together with the editors that `like` and `decoy` returned.

        Args:
            device: Where.
        """
        self._shared["device"] = torch.device(device)
        return self

    def release(self) -> None:
        """Let go of what was loaded; it is loaded again when it is needed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key_ref or 'key not shown'!s})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_secret": None, "_shared": {"device": torch.device("cpu")}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Editor":
        return copy.copy(self)

    def __copy__(self) -> "Editor":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin
