"""What the verb audit attacks: a finished run, or a checkpoint trained elsewhere that a configuration describes."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError

__all__ = ["Subject", "finished_run", "trained_elsewhere"]

_PLACES = ("devices", "num_nodes", "strategy")
"""Where an audit runs is decided on its own command line: a run of eight GPUs may be audited on one."""
_NOT_TRAINING: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "logger": False,
    "callbacks": None,
    "profiler": None,
    "fast_dev_run": False,
    "limit_val_batches": 1,  # 0 would skip every hook
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "inference_mode": False,  # attackers train
}
_NOT_THIS_RUN = ("run_name", "run_dir")


@dataclass(frozen=True)
class Subject:
    """A model and its data, built but not loaded.

    Args:
        cli: The built parser, with model, datamodule, audits and trainer.
        folder: Where results go.
        checkpoint: The weights; None where an adapter alone is there, which the model was told to load.
        keep: Writes what makes the folder a run, on rank zero, once everything was accepted; does nothing for a run.
    """

    cli: Any
    folder: RunFolder
    checkpoint: Path | None
    keep: Callable[[], None]


def finished_run(path: str, checkpoint: Path | None, overrides: list[str]) -> Subject:
    """Return a run of ours, rebuilt from what its folder holds.

    Args:
        path: The run's folder.
        checkpoint: Another checkpoint than the last one.
        overrides: Options that win over the run's configuration.

    Raises:
        InputError: the folder lacks what is needed.
    """
    folder = RunFolder.open(path)
    if not folder.config.is_file():
        raise InputError(
            f"{folder.path} has no config.yaml, so its model and data cannot be rebuilt. Describe them in a file: "
            "lightning-privacy audit --config AUDIT.yaml"
        )
    chosen = checkpoint or folder.last_checkpoint() or _foreign(folder)
    if chosen is None and not folder.adapter.is_dir():
        raise InputError(f"{folder.path} has neither checkpoints nor an adapter: there is nothing to attack.")
    _check_there(chosen)
    raw = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    kept = {key: value for key, value in raw.items() if key not in _NOT_THIS_RUN}
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        config.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        cli = _build(["--config", str(config), *overrides, "--run_dir", str(folder.path)], overrides)
    _check_audits(cli, f"lightning-privacy audit {folder.path} --audits.membership={{}}")
    if chosen is None:
        _load_adapter(cli.model, folder.adapter)
    return Subject(cli, folder, chosen, lambda: None)


def trained_elsewhere(checkpoint: Path | None, args: list[str]) -> Subject:
    """Return a model that others trained, as configuration files describe it.

    Args:
        checkpoint: The weights; ``ckpt_path`` of the configuration if None.
        args: The command line, ``--config AUDIT.yaml`` among it.

    Raises:
        InputError: no checkpoint is named, it is not there, or the folder belongs to another run.
    """
    from lightning_privacy.cli.foreign_checkpoint import ForeignCheckpoint
    from lightning_privacy.cli.run_config import SaveRunConfig, dump_config

    cli = _build(args, args)
    _check_audits(cli, "--audits.membership={}")
    named = checkpoint or cli.config.get("ckpt_path")
    if not named:
        raise InputError(
            "Nothing is named to attack: give the weights by --checkpoint FILE, or `ckpt_path` in the file."
        )
    path, folder = Path(named), cli.run_folder
    if path.is_dir():
        _load_adapter(cli.model, path)
        described = ForeignCheckpoint.of(_weights_of_adapter(path))
    else:
        _check_there(path)
        described = ForeignCheckpoint.of(path)
    _check_folder(folder, described)
    settings = cli.config.clone()
    settings["ckpt_path"] = None  # checkpoint.json says which file, and what was in it
    save = SaveRunConfig(dump_config(cli.parser, settings))

    def keep() -> None:
        save.write(folder)
        described.keep(folder)

    return Subject(cli, folder, None if path.is_dir() else path, keep)


def _build(args: list[str], command_line: list[str]) -> Any:
    from lightning_privacy.cli.privacy_cli import PrivacyCLI  # seconds: after the cheap refusals

    here = {place for place in _PLACES if any(_is_option(arg, f"--trainer.{place}") for arg in command_line)}
    fixed = {key: value for key, value in _NOT_TRAINING.items() if key not in here}
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun has started one process a device already
        fixed["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
        fixed["num_nodes"] = int(os.environ["WORLD_SIZE"]) // fixed["devices"]
    return PrivacyCLI(args, run=False, trainer_overrides=fixed)


def _is_option(arg: str, name: str) -> bool:
    return arg == name or arg.startswith(f"{name}=")


def _check_audits(cli: Any, remedy: str) -> None:
    if not cli.audits:
        raise InputError(f"The configuration has no audits. Add one: {remedy}")


def _check_there(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")


def _check_folder(folder: RunFolder, described: Any) -> None:
    before = type(described).kept_in(folder)
    if before is not None and before.sha256 != described.sha256:
        raise InputError(
            f"{folder.path} holds the audit of other weights ({before.path}, sha256 {before.sha256[:12]}) than "
            f"{described.path} ({described.sha256[:12]}). Give this audit a folder of its own: --run_name NAME"
        )
    if before is None and (folder.configs() or folder.last_checkpoint() is not None):
        raise InputError(
            f"{folder.path} holds a run that was trained there. Give this audit a folder of its own (--run_name NAME), "
            f"or audit that run: lightning-privacy audit {folder.path}"
        )


def _foreign(folder: RunFolder) -> Path | None:
    """Return the file that an earlier audit of this folder attacked, if it still holds the same."""
    from lightning_privacy.cli.foreign_checkpoint import ForeignCheckpoint

    before = ForeignCheckpoint.kept_in(folder)
    if before is None:
        return None
    path = Path(before.path)
    _check_there(path)
    if ForeignCheckpoint.of(path).sha256 != before.sha256:
        raise InputError(
            f"{path} holds other weights now than when {folder.path} was audited. Audit them into another folder: "
            "lightning-privacy audit --config AUDIT.yaml --run_name NAME"
        )
    return path


def _weights_of_adapter(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no adapter: there is no .safetensors file in it.")
    return files[0]


def _load_adapter(model: Any, folder: Path) -> None:
    load = getattr(model, "load_adapter", None)
    if load is None:
        raise InputError(f"{folder} is an adapter, which {type(model).__name__} cannot load (`load_adapter`).")
    load(folder)
