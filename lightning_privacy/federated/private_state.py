"""What a client keeps to itself between rounds: secrets, the optimizer's memory of them, and what it does not share."""

import json
import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.optimizer_state import join_optimizer_states, split_optimizer_states
from lightning_privacy.secrets.private_states import load_private_states, save_private_states
from lightning_privacy.secrets.secret_module import secret_modules
from lightning_privacy.secrets.secret_ref import PASSPHRASE, SecretRef
from lightning_privacy.secrets.vault import KeyVault

__all__ = ["PrivateState", "private_folder"]

_SECRET, _LOCAL, _OPTIMIZER = "secret/", "local/", "optimizer"
_ROUND = "round"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder that its owner alone may enter; it is made where it is absent.

    Args:
        path: The folder.

    Raises:
        InputError: it cannot be made, or others may enter it.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as wrong:
        raise InputError(
            f"The private folder {folder} cannot be made ({wrong.strerror}). Name one that you may write."
        ) from wrong
    if os.name == "posix" and mode & _OTHERS:
        raise InputError(
            f"Others may enter the private folder {folder} (mode {stat.S_IMODE(mode):04o}), where a client keeps its secrets. "
            f"`chmod 700 {folder}`, or name another."
        )
    return folder


class PrivateState:
    """The private state of one client, in one vault of mode 0600 in a folder of mode 0700.

    It is encrypted where the environment variable ``LIGHTNING_PRIVACY_PASSPHRASE`` is set. Each write replaces the state of
    the round before; a job killed in between leaves that one.

    Args:
        folder: The client's own; made where it is absent.

    Raises:
        InputError: others may enter it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = private_folder(folder)
        self.file = self.folder / "state.safetensors"

    def round(self) -> int:
        """Return the last round that was kept; 0 where there is none."""
        return int(json.loads(KeyVault(self.file).text(_ROUND))) if self.file.exists() else 0

    def keep(self, module: nn.Module, optimizers: Sequence[Optimizer], local: Sequence[str], number: int) -> None:
        """Write the state after a round.

        Args:
            module: The trained module.
            optimizers: Its optimizers; what they remember of secrets is kept, what they remember of shared weights is not.
            local: Entries of the state dict that are not shared.
            number: Of the round.

        Raises:
            InputError: it cannot be written.
        """
        secrets = {
            f"{_SECRET}{name}/{k}": v for name, part in secret_modules(module) for k, v in part.secret_tensors().items()
        }
        state = module.state_dict()
        secrets |= {f"{_LOCAL}{name}": state[name].detach() for name in local}
        _, private = split_optimizer_states(_states(optimizers), module, optimizers)
        half = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex}")
        try:
            vault = KeyVault.create(half, SecretRef(f"env:{PASSPHRASE}") if os.environ.get(PASSPHRASE) else None)
            vault.put_all(secrets, {_ROUND: str(number)})
            save_private_states(vault, _OPTIMIZER, private)
            os.replace(half, self.file)
        finally:
            half.unlink(missing_ok=True)

    def restore(self, module: nn.Module) -> None:
        """Put secrets and local entries back; nothing happens before the first round was kept.

        Args:
            module: Built as it was; changed in place.

        Raises:
            InputError: the state is of another model.
        """
        if not self.file.exists():
            return
        kept = self._tensors()
        state = module.state_dict()
        parts = dict(secret_modules(module))
        theirs = {n.removeprefix(_SECRET).rpartition("/")[0] for n in kept if n.startswith(_SECRET)}
        local = {n.removeprefix(_LOCAL): v for n, v in kept.items() if n.startswith(_LOCAL)}
        if theirs != set(parts) or not set(local) <= set(state):
            raise InputError(
                f"The private state in {self.file} is of another model: it has the secrets of {sorted(theirs)}, and this "
                f"{type(module).__name__} has those of {sorted(parts)}. Take the model it was made with, or another folder."
            )
        for name, part in parts.items():
            prefix = f"{_SECRET}{name}/"
            part.fill({n.removeprefix(prefix): v for n, v in kept.items() if n.rpartition("/")[0] + "/" == prefix})
        with torch.no_grad():
            for name, value in local.items():
                state[name].copy_(value)

    def restore_optimizers(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Give new optimizers the memory of the secrets that the last round's had; all else starts anew.

        Args:
            module: The module whose parameters they hold.
            optimizers: New ones.

        Raises:
            InputError: they are other optimizers than the last round's.
        """
        if not self.file.exists():
            return
        private = load_private_states(KeyVault(self.file), _OPTIMIZER)
        joined = join_optimizer_states(_states(optimizers), private, module, optimizers)
        for optimizer, state in zip(optimizers, joined["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def secrets(self) -> dict[str, Tensor | str]:
        """Return everything that must not leave: this state, and every other vault in the folder, by name."""
        found: dict[str, Tensor | str] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            found |= {f"{file.stem}/{name}": value for name, value in KeyVault(file).secrets().items()}
        return found

    def _tensors(self) -> dict[str, Tensor]:
        secrets: Mapping[str, Tensor | str] = KeyVault(self.file).secrets()
        return {name: value for name, value in secrets.items() if isinstance(value, Tensor)}


def _states(optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    return {"optimizer_states": [optimizer.state_dict() for optimizer in optimizers]}
