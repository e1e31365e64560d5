"""A run is a folder: where everything of one training run lies, and how it is written and read."""

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_privacy.core.line_types import check_measurement
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.text_lines import decoded, read_json_lines
from lightning_privacy.errors import InputError

__all__ = ["RunFolder", "read_metrics", "write_atomically"]

_MEASUREMENT: dict[str, Any] = {
    "low": None,
    "high": None,
    "n": None,
    "step": 0,
    "epoch": 0,
    "valid": True,
    "reason": "",
}


class RunFolder:
    """The folder of one run; nothing is created before something is written.

    Args:
        path: The folder, existing or to be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Return an existing run.

        Raises:
            InputError: there is no such folder, or it holds neither a configuration nor results.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"{run.path} is no folder. Name the folder of a run, such as runs/NAME.")
        if not any(p.is_file() for p in (run.config, run.results_file, run.measurements_file)):
            raise InputError(
                f"{run.path} is no run: it holds neither config.yaml nor results.jsonl. "
                "`lightning-privacy fit --run_name NAME` makes a run in runs/NAME."
            )
        return run

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Last part of the path, for tables."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The configuration last used for training here: config.yaml, or config-2.yaml where that one was changed."""
        return self.configs()[-1] if self.configs() else self.path / "config.yaml"

    @property
    def split(self) -> Path:
        """The split record: roles and ids of the records."""
        return self.path / "split.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder of the exported adapter."""
        return self.path / "adapter"

    @property
    def foreign(self) -> Path:
        """Which checkpoint an audit attacked that was trained elsewhere: its path and sha256."""
        return self.path / "checkpoint.json"

    @property
    def pictures(self) -> Path:
        """Folder of sample grids."""
        return self.path / "pictures"

    @property
    def results_file(self) -> Path:
        """One attack result a line."""
        return self.path / "results.jsonl"

    @property
    def measurements_file(self) -> Path:
        """One measurement of quality, utility or cost a line."""
        return self.path / "measurements.jsonl"

    @property
    def metrics(self) -> Path:
        """Scalars logged during training."""
        return self.path / "metrics.csv"

    @property
    def report(self) -> Path:
        """The page made by ``lightning-privacy report``."""
        return self.path / "report.html"

    @property
    def wandb_id(self) -> Path:
        """The W&B run's id, so that a requeued job continues it."""
        return self.path / "wandb_id"

    def configs(self) -> list[Path]:
        """Return the configurations used for training here, oldest first."""
        every = [(1, self.path / "config.yaml")]
        every += [(int(p.stem.removeprefix("config-")), p) for p in self.path.glob("config-*.yaml") if _numbered(p)]
        return [p for _, p in sorted(every) if p.is_file()]

    def last_checkpoint(self) -> Path | None:
        """Return ``checkpoints/last.ckpt``, else the newest checkpoint, else None."""
        last = self.checkpoints / "last.ckpt"
        if last.exists():
            return last
        every = sorted(self.checkpoints.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
        return every[-1] if every else None

    def append_result(self, result: AttackResult) -> None:
        """Append one attack result."""
        _append(self.results_file, result.to_json())

    def results(self) -> list[AttackResult]:
        """Return the results, the last one of each (family, attack, step), in the order of the file.

        Raises:
            InputError: a whole line cannot be read.
        """
        last: dict[tuple[str, str, int], AttackResult] = {}
        for result in read_json_lines(self.results_file, "attack result", AttackResult.from_json):
            key = (result.family, result.attack, result.step)
            last.pop(key, None)
            last[key] = result
        return list(last.values())

    def append_measurement(self, measurement: Mapping[str, Any]) -> None:
        """Append one measurement.

        Args:
            measurement: ``kind`` (quality, utility or cost), ``name``, ``value``, and optionally ``low``, ``high``,
                ``n``, ``step``, ``epoch``, ``valid``, ``reason``. A value that is not finite is written as invalid.

        Raises:
            InputError: a key is missing or unknown.
        """
        missing = {"kind", "name", "value"} - set(measurement)
        unknown = set(measurement) - {"kind", "name", "value", *_MEASUREMENT}
        if missing or unknown:
            raise InputError(f"A measurement lacks {sorted(missing)} or has unknown keys {sorted(unknown)}.")
        line = {**_MEASUREMENT, **measurement}
        if line["value"] is not None and not math.isfinite(line["value"]):
            line |= {"valid": False, "reason": line["reason"] or f"the value is {line['value']}", "value": None}
        for end in ("low", "high"):
            if line[end] is not None and not math.isfinite(line[end]):
                line[end] = None
        _append(self.measurements_file, json.dumps(line, sort_keys=True))

    def measurements(self) -> list[dict[str, Any]]:
        """Return the measurements, the last one of each (kind, name, step), in the order of the file.

        Raises:
            InputError: a whole line cannot be read.
        """
        last: dict[tuple[str, str, int], dict[str, Any]] = {}
        for raw in read_json_lines(self.measurements_file, "measurement", _measurement):
            key = (raw["kind"], raw["name"], raw["step"])
            last.pop(key, None)
            last[key] = raw
        return list(last.values())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Return the rows of a metrics file, cells as text, empty where nothing was logged; no file, no rows.

    Raises:
        InputError: the file is no table in UTF-8, or a step is no whole number; the message names the line.
    """
    file, rows = Path(path), []
    table = csv.DictReader(io.StringIO(decoded(file), newline=""))
    try:
        for raw in table:
            row = {k: v or "" for k, v in raw.items() if k is not None}
            if row.get("step") and not row["step"].isdecimal():
                raise InputError(
                    f"{file}, line {table.line_num}: the step is {row['step'][:40]!r}, which is no whole number. Correct "
                    "or remove that line."
                )
            rows.append(row)
    except csv.Error as wrong:
        raise InputError(f"{file}, line {table.line_num}: this is no row of a table ({wrong}).") from wrong
    return rows


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # containers that share a folder share process ids
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)  # what a job killed in mid-line left behind
        file.write((line + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _measurement(line: str) -> dict[str, Any]:
    raw = json.loads(line)
    check_measurement(raw)
    return {**_MEASUREMENT, **raw}


def _numbered(path: Path) -> bool:
    return path.stem.removeprefix("config-").isdigit()
