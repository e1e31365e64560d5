"""The verb audit: attacks on a finished run, or on a checkpoint that was trained elsewhere."""

import argparse
import warnings
from pathlib import Path

from lightning_privacy.cli.audit_subject import Subject, finished_run, trained_elsewhere

__all__ = ["run"]

_KNOWN_NOISE = (
    # the training's callbacks are absent on purpose
    "Be aware that when using `ckpt_path`, callbacks used to create",
    # no validation is meant
    "Using `DistributedSampler` with the dataloaders",
    "The 'val_dataloader' does not have many workers",
)


def run(verb: str, args: list[str]) -> int:
    """Rebuild a model and its data, load the weights, check the split, run the audits that are missing."""
    chosen, overrides = _parse(verb, args)
    if chosen.run is None:
        subject = trained_elsewhere(chosen.checkpoint, overrides)
    else:
        subject = finished_run(chosen.run, chosen.checkpoint, overrides)
    lines = _attack(subject, chosen.again, chosen.shadows_only)
    if subject.cli.trainer.is_global_zero:
        for line in lines or ["nothing to do: every audit has its results for this step (--again repeats them)"]:
            print(line)
    return 0


def _parse(verb: str, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        usage=f"lightning-privacy {verb} RUN [options]\n       lightning-privacy {verb} --config AUDIT.yaml [options]",
        description="Attack a finished run, or a checkpoint trained elsewhere that AUDIT.yaml describes: model, data with "
        "its members, audits, and ckpt_path. Further options override the configuration, such as "
        "--audits.membership.draws 4, --config more.yaml or --trainer.devices 2; torchrun and SLURM start several "
        "processes as they do for fit.",
        allow_abbrev=False,
    )
    elsewhere = bool(args) and args[0].startswith("-") and any(a.partition("=")[0] == "--config" for a in args)
    if not elsewhere:
        parser.add_argument("run", metavar="RUN", help="the run's folder, such as runs/NAME")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="other weights than the run's last or the file's ckpt_path: a Lightning checkpoint, a state dict or "
        "safetensors",
    )
    parser.add_argument("--again", action="store_true", help="repeat attacks that have a result for this step")
    parser.add_argument(
        "--shadows-only",
        metavar="I/N",
        type=_share,
        help="train every Nth missing shadow model, from the Ith (0 to N-1), and attack nothing: one task of a job array",
    )
    chosen, overrides = parser.parse_known_args(args)
    chosen.run = None if elsewhere else chosen.run
    return chosen, overrides


def _attack(subject: Subject, again: bool, shadows_only: tuple[int, int] | None) -> list[str]:
    from lightning_privacy.cli.auditor import Auditor
    from lightning_privacy.cli.foreign_checkpoint import is_lightning, read_checkpoint
    from lightning_privacy.cli.placing import without_validation

    cli, path = subject.cli, subject.checkpoint
    saved = {} if path is None else read_checkpoint(path)
    auditor = Auditor(
        cli.audits,
        subject.folder,
        path,
        saved,
        again=again,
        shadows_only=shadows_only,
        epochs=cli.config.get("trainer.max_epochs"),
        keep=subject.keep,
    )
    cli.trainer.callbacks.append(auditor)
    without_validation(cli.model, cli.datamodule)
    with warnings.catch_warnings():
        for message in _KNOWN_NOISE:
            warnings.filterwarnings("ignore", message=message)
        cli.trainer.validate(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=str(path) if is_lightning(saved) else None,
            verbose=False,
            weights_only=True,
        )
    return auditor.lines


def _share(text: str) -> tuple[int, int]:
    """Read ``I/N``; argparse turns the error into one line with exit code 2."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"`{text}` is no share such as 0/16: two numbers, the first below the second")
    return int(part), int(parts)
