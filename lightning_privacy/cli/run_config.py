"""Which folder a run gets, and the configuration that is kept there."""

import importlib.util
import secrets
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.registry import AUDITS, DEFENCES
from lightning_privacy.core.run_folder import RunFolder, write_atomically

__all__ = ["SaveRunConfig", "choose_run_folder", "derive", "dump_config", "same_run"]

_SET_ANEW = ("ckpt_path", "config")
"""Keys that differ between the first start of a job and its requeue without making it another run."""


def choose_run_folder(config: Namespace) -> RunFolder:
    """Return the folder of a run.

    Args:
        config: The parsed configuration: ``run_dir`` is the folder itself; else ``run_name`` stands for
            ``runs/<run_name>``; else ``trainer.default_root_dir``; else the first config file's name.
    """
    if config.get("run_dir"):
        return RunFolder(config["run_dir"])
    if config.get("run_name"):
        return RunFolder(Path("runs") / config["run_name"])
    if config.get("trainer.default_root_dir"):
        return RunFolder(config["trainer.default_root_dir"])
    files = config.get("config") or ["run"]
    return RunFolder(Path("runs") / Path(str(files[0])).stem)


def derive(config: Namespace, run: RunFolder) -> None:
    """Fill in what follows from the run's folder, in place: root directory, where loggers write, the W&B run's id."""
    config["trainer.default_root_dir"] = str(run.path)
    loggers = config.get("trainer.logger")
    if loggers in (None, True, False):
        return
    every = loggers if isinstance(loggers, list) else [loggers]
    kept = [logger for logger in every if _usable(logger)]
    for logger in kept:
        args = logger.get("init_args") or Namespace()
        if "save_dir" in args and args["save_dir"] in (None, ".", ""):
            args["save_dir"] = str(run.path)
        if logger["class_path"].endswith(".WandbLogger"):
            args["name"] = args.get("name") or run.name
            args["id"] = args.get("id") or _wandb_id(run)
            args["log_model"] = args.get("log_model") or False
    config["trainer.logger"] = kept or True


def dump_config(parser: LightningArgumentParser, config: Namespace) -> str:
    """Return the configuration as YAML that reads like a recipe: no class paths in the defence and audit groups."""
    raw = yaml.safe_load(parser.dump(config, skip_unset=False, format="yaml"))
    for group, registry in (("defences", DEFENCES), ("audits", AUDITS)):
        chosen = {name: spec for name, spec in (raw.get(group) or {}).items() if spec is not None}
        for name, spec in chosen.items():
            cls = registry.load(name)
            if import_object(spec.get("class_path")) is cls:  # which may be written as our public, shorter path
                chosen[name] = spec.get("init_args") or {}
        raw[group] = chosen
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def same_run(one: str, other: str) -> bool:
    """Return whether two dumped configurations are of the same run, possibly resumed."""
    first, second = ({k: v for k, v in (yaml.safe_load(t) or {}).items() if k not in _SET_ANEW} for t in (one, other))
    return first == second


class SaveRunConfig(L.Callback):
    """Keeps the run's configuration in its folder, once everything was accepted and training is about to start.

    A requeued job finds its own configuration and leaves it; a changed one is kept beside it as config-2.yaml, so that
    the folder tells what happened.

    Args:
        text: The configuration as YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.saved: Path | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on rank zero."""
        if trainer.is_global_zero:
            self.write(RunFolder(trainer.default_root_dir))

    def write(self, run: RunFolder) -> None:
        """Write the file into a run's folder, unless the same configuration is there."""
        there = run.configs()
        if there and same_run(there[-1].read_text(encoding="utf-8"), self.text):
            self.saved = there[-1]
            return
        number = len(there) + 1
        self.saved = run.path / ("config.yaml" if number == 1 else f"config-{number}.yaml")
        write_atomically(self.saved, self.text)
        if number > 1:
            rank_zero_info(f"{run.path} was made with another configuration before; this one is in {self.saved.name}")


def _usable(logger: Any) -> bool:
    if logger["class_path"].endswith(".WandbLogger") and importlib.util.find_spec("wandb") is None:
        rank_zero_info("wandb is not installed: this run logs to metrics.csv only (pip install wandb)")
        return False
    return True


def _wandb_id(run: RunFolder) -> str:
    if run.wandb_id.is_file():
        return run.wandb_id.read_text(encoding="utf-8").strip()
    return secrets.token_hex(4)  # as long as the ids that W&B makes; written when training starts
