"""Warnings of the libraries below us that a user of the command line can do nothing about."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_known_noise"]

_NOISE: tuple[tuple[str, type[Warning]], ...] = (
    # Lightning 2.6 asks torch 2.15's pytree in a way that still works
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    # our recipes always say `ckpt_path: last`, so that a requeued job continues; the first start has none
    (r"\.\w+\(ckpt_path=\"last\"\) is set, but there is no last checkpoint available", UserWarning),
    # a run is a folder that a requeued job finds again; the checkpoints in it are its own
    (r"Checkpoint directory .* exists and is not empty", UserWarning),
    # small data sets load faster in the main process; the recipes choose the number of workers
    (r"The '\w+_dataloader' does not have many workers", UserWarning),
    # a GPU in the machine of someone who asked for `accelerator: cpu`
    (r"GPU available but not used", UserWarning),
    # the summary's estimate of megabytes; the table itself is right
    (r"Precision .* is not supported by the model summary", UserWarning),
    # an epoch of a small fine-tune has fewer batches than Lightning's default logging interval; lines still come
    (r"The number of training batches \(\d+\) is smaller than the logging interval", UserWarning),
)


@contextmanager
def without_known_noise() -> Iterator[None]:
    """Silence the known warnings, and Lightning's advertisements, while a verb runs."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        for message, category in _NOISE:
            warnings.filterwarnings("ignore", message=message, category=category)
        log.addFilter(_no_tips)
        try:
            yield
        finally:
            log.removeFilter(_no_tips)


def _no_tips(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()
