"""The verb audit: attacks on a finished run, from what its folder holds."""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError

__all__ = ["run"]

_NOT_TRAINING: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "logger": False,
    "callbacks": None,
    "profiler": None,
    "fast_dev_run": False,
    "limit_val_batches": 1,  # validation is only the way to a model on its device; 0 would skip every hook
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "inference_mode": False,  # attackers train
}
_NOT_THIS_RUN = ("run_name", "run_dir")


def run(verb: str, args: list[str]) -> int:
    """Rebuild a run's model and data, load its weights, check the split, run the audits that are missing."""
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Attack a finished run. Audits are those of its configuration; further options override it, such "
        "as --audits.membership.draws 4 or --config more.yaml.",
    )
    parser.add_argument("run", help="the run's folder, such as runs/NAME")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than the run's last one")
    parser.add_argument("--again", action="store_true", help="repeat attacks that have a result for this step")
    parser.add_argument(
        "--shadows-only",
        metavar="I/N",
        type=_share,
        help="train every Nth missing shadow model, from the Ith (0 to N-1), and attack nothing: one task of a job array",
    )
    chosen, overrides = parser.parse_known_args(args)
    folder = RunFolder.open(chosen.run)
    if not folder.config.is_file():
        raise InputError(f"{folder.path} has no config.yaml, so its model and data cannot be rebuilt.")
    checkpoint = chosen.checkpoint or folder.last_checkpoint()
    if checkpoint is None and not folder.adapter.is_dir():
        raise InputError(f"{folder.path} has neither checkpoints nor an adapter: there is nothing to attack.")
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"There is no checkpoint {checkpoint}.")
    cli = _rebuild(folder, overrides)
    if not cli.audits:
        raise InputError(
            f"{folder.config} has no audits. Add one: lightning-privacy audit {folder.path} --audits.membership={{}}"
        )
    if checkpoint is None:
        _load_adapter(cli.model, folder)
    from lightning_privacy.cli.auditor import Auditor

    auditor = Auditor(cli.audits, folder, checkpoint, chosen.again, chosen.shadows_only)
    cli.trainer.callbacks.append(auditor)
    path = None if checkpoint is None else str(checkpoint)
    with warnings.catch_warnings():
        # the training's callbacks are absent on purpose
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=path, verbose=False)
    for line in auditor.lines or ["nothing to do: every audit has its results for this step (--again repeats them)"]:
        print(line)
    return 0


def _share(text: str) -> tuple[int, int]:
    """Read ``I/N``; argparse turns the error into one line with exit code 2."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"`{text}` is no share such as 0/16: two numbers, the first below the second")
    return int(part), int(parts)


def _rebuild(folder: RunFolder, overrides: list[str]) -> Any:
    from lightning_privacy.cli.privacy_cli import PrivacyCLI  # seconds: after the cheap refusals

    raw = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    kept = {key: value for key, value in raw.items() if key not in _NOT_THIS_RUN}
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        config.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        args = ["--config", str(config), *overrides, "--run_dir", str(folder.path)]
        return PrivacyCLI(args, run=False, trainer_overrides=_NOT_TRAINING)


def _load_adapter(model: Any, folder: RunFolder) -> None:
    load = getattr(model, "load_adapter", None)
    if load is None:
        raise InputError(
            f"{folder.path} has only an adapter, which {type(model).__name__} cannot load (`load_adapter`)."
        )
    load(folder.adapter)
