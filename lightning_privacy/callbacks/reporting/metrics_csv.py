"""All logged scalars in one CSV that survives a kill and is continued by a requeued job."""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from lightning_privacy.core.run_folder import read_metrics, write_atomically

__all__ = ["MetricsCSV"]


class MetricsCSV(Logger):
    """A logger that appends rows to one file; Lightning's own starts the file anew each time.

    Args:
        path: The file; made when the first row is logged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """No versions: a run is a folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; a metric seen for the first time becomes a new last column."""
        row = {"step": step, **metrics}
        if not self._columns:
            rows = read_metrics(self.path)
            self._columns = list(rows[0]) if rows else []
        new = [name for name in row if name not in self._columns]
        if new or not self.path.is_file():
            rows = read_metrics(self.path)
            self._columns += new
            write_atomically(
                self.path, self._text([self._columns, *([r.get(c, "") for c in self._columns] for r in rows)])
            )
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text([[row.get(c, "") for c in self._columns]]))

    @staticmethod
    def _text(rows: list[list[Any]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
