"""A checkpoint that was trained elsewhere: what file it is, and how its weights come into our module."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_privacy.core.run_folder import RunFolder, write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.file_hash import file_hash

__all__ = ["ForeignCheckpoint", "is_lightning", "load_weights", "read_checkpoint"]

_NESTED = ("state_dict", "model", "model_state_dict", "net", "weights")
"""Where training scripts keep the weights among other things."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """Which file is audited; kept as ``checkpoint.json`` in the run's folder.

    Args:
        path: The file.
        sha256: Its content.
        n_bytes: Its size.
    """

    path: str
    sha256: str
    n_bytes: int

    @classmethod
    def of(cls, path: Path) -> "ForeignCheckpoint":
        """Read and describe a file."""
        return cls(str(path.resolve()), file_hash(path), path.stat().st_size)

    @classmethod
    def kept_in(cls, folder: RunFolder) -> "ForeignCheckpoint | None":
        """Return what an audit of this folder attacked before, None for nothing.

        Raises:
            InputError: the file that says so cannot be read.
        """
        if not folder.foreign.is_file():
            return None
        try:
            return cls(**json.loads(folder.foreign.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as wrong:
            raise InputError(f"{folder.foreign} cannot be read; delete it and audit again.") from wrong

    def keep(self, folder: RunFolder) -> None:
        """Write the description into a run's folder."""
        write_atomically(folder.foreign, json.dumps(asdict(self), indent=1) + "\n")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code that it may hold.

    Args:
        path: A Lightning checkpoint, any file of ``torch.save`` that holds tensors and plain values, or safetensors.

    Raises:
        InputError: the file is none of these, or holds pickled objects.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as wrong:
            raise InputError(f"{path} is no safetensors file: {wrong}.") from wrong
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as wrong:
        raise InputError(
            f"{path} holds more than tensors and plain values, and loading such objects would run code from the file: "
            f"{_first_line(wrong)} Where you trust the file, save its weights alone, by torch.save(model.state_dict(), "
            "PATH) or as safetensors, and audit that."
        ) from wrong
    except (RuntimeError, EOFError, ValueError, KeyError) as wrong:
        raise InputError(f"{path} is no checkpoint that PyTorch can read: {_first_line(wrong)}") from wrong
    if not isinstance(read, dict):
        raise InputError(f"{path} holds a {type(read).__name__}, not a dict of weights. Save model.state_dict().")
    return read


def is_lightning(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a Trainer wrote the checkpoint, so that a Trainer can load it."""
    return "pytorch-lightning_version" in checkpoint and "state_dict" in checkpoint


def load_weights(module: torch.nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load bare weights; every name of the module and every name of the file must be accounted for.

    Tolerated are what distributed training and compilation put before each name, and a network that the module holds
    as one of its children.

    Args:
        module: The module, in its final shape.
        checkpoint: What `read_checkpoint` returned.
        path: The file, for the error.

    Raises:
        InputError: names or shapes do not agree.
    """
    weights = _bare(checkpoint)
    own = module.state_dict()
    prefixes = ["", *(f"{name}." for name, _ in module.named_children())]
    fitting = [p for p in prefixes if {f"{p}{name}" for name in weights} == set(own)]
    if not fitting:
        lacking, foreign = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
        raise InputError(
            f"The weights in {path} are not those of {type(module).__name__}: {len(lacking)} of its names are not in "
            f"the file (first: {_first(lacking)}), and {len(foreign)} names of the file are not its own (first: "
            f"{_first(foreign)}). Describe under `model` the very network that was trained."
        )
    found = {f"{fitting[0]}{name}": value for name, value in weights.items()}
    wrong = [n for n, value in found.items() if value.shape != own[n].shape]
    if wrong:
        raise InputError(
            f"`{wrong[0]}` has shape {tuple(found[wrong[0]].shape)} in {path} and {tuple(own[wrong[0]].shape)} in "
            f"{type(module).__name__}, {len(wrong)} of {len(own)} alike. Describe under `model` the very network that "
            "was trained, its number of classes too."
        )
    module.load_state_dict(found)


def _bare(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    nested = next((checkpoint[k] for k in _NESTED if isinstance(checkpoint.get(k), Mapping)), checkpoint)
    weights = {str(name): value for name, value in nested.items() if isinstance(value, Tensor)}
    for wrapper in _WRAPPERS:
        if weights and all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def _first(names: list[str]) -> str:
    return f"`{names[0]}`" if names else "none"


def _first_line(failure: BaseException) -> str:
    return str(failure).strip().partition("\n")[0]
