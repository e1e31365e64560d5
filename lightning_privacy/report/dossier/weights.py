"""The weights that a dossier is about, and whether the results are about the same."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.errors import InputError, PrivacyError
from lightning_privacy.report.dossier.file_hash import file_hash
from lightning_privacy.report.dossier.models import Checkpoint

__all__ = ["Weights", "weights_of"]

_NONE = "There is no checkpoint in the run's folder, so that the weights that were attacked are not named."
_ELSEWHERE = (
    "The model was trained elsewhere: its settings, its defences and who is a member are what the auditor's configuration "
    "says."
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Weights:
    """What is known of the weights.

    Args:
        checkpoint: The file; None where there is none that can be read.
        fingerprints: Of keys, by defence.
        remarks: What must be said beside the numbers.
        gaps: Why the results may be about other weights; each forbids a release.
    """

    checkpoint: Checkpoint | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()


def weights_of(run: RunFolder, step: int | None, defended: bool) -> Weights:
    """Return the run's last checkpoint, else its exported adapter, else the file trained elsewhere that was attacked.

    Args:
        run: The run.
        step: Optimizer steps of the model that was attacked; None where none was.
        defended: Whether the run has defences, whose manifest the checkpoint holds.

    Raises:
        InputError: the record of a file trained elsewhere cannot be read.
    """
    path = run.last_checkpoint()
    if path is not None:
        return _of_checkpoint(run, path, step, defended)
    if run.adapter.is_dir() and (files := sorted(run.adapter.glob("*.safetensors"))):
        return _of_adapter(run, files[0], step)
    if run.foreign.is_file():
        return Weights(_foreign(run.foreign), remarks=(_ELSEWHERE,))
    return Weights(remarks=(_NONE,), gaps=(_NONE,))


def _of_checkpoint(run: RunFolder, path: Path, step: int | None, defended: bool) -> Weights:
    name = path.relative_to(run.path).as_posix()
    saved = _read(path)
    if saved is None:
        unread = f"The checkpoint {name} cannot be read, so that nothing shows that the results are about its weights."
        return Weights(gaps=(unread,))
    found = saved.get("global_step")
    known = found if isinstance(found, int) and not isinstance(found, bool) else None
    gaps = []
    if known is None:
        gaps.append(f"The checkpoint {name} does not say after how many optimizer steps it was saved.")
    elif step is not None and known != step:
        gaps.append(
            f"The attacks were on the model of step {step}, and the checkpoint {name} is of step {known}; run "
            "`lightning-privacy audit` on it."
        )
    fingerprints, remarks = _fingerprints(saved, path) if defended else ({}, ())
    gaps += _logged_later(run, step, _batches(saved))
    return Weights(_described(path, name), fingerprints, remarks, tuple(gaps))


def _of_adapter(run: RunFolder, path: Path, step: int | None) -> Weights:
    from safetensors import safe_open

    name = path.relative_to(run.path).as_posix()
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()  # reads the header
    except Exception:  # of the Rust side, whatever is wrong with the file
        return Weights(
            gaps=(f"The adapter {name} cannot be read, so that nothing shows that the results are about it.",)
        )
    remark = f"The weights are the adapter {name}, which does not say of which step it is."
    return Weights(_described(path, name), remarks=(remark,), gaps=tuple(_logged_later(run, step, 0)))


def _described(path: Path, name: str) -> Checkpoint:
    return Checkpoint(path=name, sha256=file_hash(path), n_bytes=path.stat().st_size)


def _foreign(record: Path) -> Checkpoint:
    try:
        seen = json.loads(record.read_text(encoding="utf-8"))
        if not _SHA256.fullmatch(seen["sha256"]):
            raise ValueError("no sha256")
        # the name alone: folders tell of people and machines
        return Checkpoint(path=Path(seen["path"]).name, sha256=seen["sha256"], n_bytes=seen["n_bytes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise InputError(f"{record} cannot be read; delete it and audit the checkpoint again.") from wrong


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return a checkpoint's content without running code that it may hold, or None where it cannot be read."""
    import torch

    for mapped in (True, False):  # the format before zip files cannot be mapped
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            return saved if isinstance(saved, Mapping) else None
        except Exception:  # a damaged file makes torch raise nearly anything; the caller says that it cannot be read
            continue
    return None


def _fingerprints(saved: Mapping[str, Any], path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    from lightning_privacy.core.manifest_record import read_manifest

    try:
        defences = (read_manifest(dict(saved)) or {}).get("defences", {})
        found = {n: str(d["key_fingerprint"]) for n, d in defences.items() if d.get("key_fingerprint")}
    except (PrivacyError, ValueError, KeyError, TypeError, AttributeError):
        return {}, (f"The defence manifest of {path.name} could not be read, so that no key fingerprint is given.",)
    return found, ()


def _batches(saved: Mapping[str, Any]) -> int:
    """Return how far loggers had counted when a checkpoint was saved: batches, which manual optimisation may not step."""
    try:
        return int(saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])
    except (KeyError, TypeError, ValueError):
        return 0


def _logged_later(run: RunFolder, step: int | None, counted: int) -> list[str]:
    logged = max((int(row["step"]) for row in read_metrics(run.metrics) if row.get("step")), default=0)
    if step is None or logged <= max(step, counted):
        return []
    return [
        f"The attacks were on the model of step {step}, and {run.metrics.name} tells of training up to step {logged}; audit "
        "the model that is to be released."
    ]
