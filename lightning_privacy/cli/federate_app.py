"""The Flower apps of `federate`: each process finds its folder in its environment, and its configuration there."""

import os
import traceback
from pathlib import Path
from typing import Any

from flwr.app import Context  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]

from lightning_privacy.cli.federate_config import read_settings
from lightning_privacy.cli.quiet import without_known_noise
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.run_folder import RunFolder, write_atomically
from lightning_privacy.federated.flower.client import client_app
from lightning_privacy.federated.flower.loopback import CLIENT, ERROR, SERVER
from lightning_privacy.federated.flower.server import ServerParts, run_server
from lightning_privacy.federated.rounds import METRICS, ClientParts, Reply

__all__ = ["client", "client_parts", "server", "server_parts"]

_OURS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_NO_TRAINING: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "strategy": "auto",
    "precision": None,
    "plugins": None,
}


def client_parts(folder: Path) -> ClientParts:
    """Return what a client trains with, from its folder.

    Args:
        folder: With ``config.yaml`` and ``federation.json``.
    """
    from lightning_privacy.callbacks.reporting.run_files import RunFiles
    from lightning_privacy.cli.privacy_cli import PrivacyCLI

    settings = read_settings(folder)
    cli = PrivacyCLI(["--config", str(folder / "config.yaml")], run=False, trainer_overrides=_OURS)
    given = {name: value for name, value in vars(cli.config_init["trainer"]).items() if value is not None}
    seed = cli.config["seed_everything"]
    return ClientParts(
        cli.model,
        cli.datamodule,
        [*cli.defences.values(), RunFiles()],
        given | _OURS | {"max_epochs": settings.local_epochs, "default_root_dir": str(folder)},
        local=settings.local,
        seed=derive_seed(folder.name, seed if isinstance(seed, int) else 0),
    )


def server_parts(folder: Path) -> ServerParts:
    """Return what the server needs, from its folder.

    Args:
        folder: As a client's.
    """
    from lightning_privacy.cli.privacy_cli import PrivacyCLI
    from lightning_privacy.core.conflicts import order_defences
    from lightning_privacy.core.defence import Defence

    settings = read_settings(folder)
    cli = PrivacyCLI(["--config", str(folder / "config.yaml")], run=False, trainer_overrides=_NO_TRAINING)
    return ServerParts(
        cli.model,
        settings.clients,
        settings.rounds,
        order_defences([d for d in cli.defences.values() if isinstance(d, Defence)]),
        settings.local,
        settings.strategy,
        cli.trainer.loggers,
        folder,
        settings.timeout,
    )


def _own(context: Context) -> Path:
    return Path(os.environ[CLIENT])


def _note(context: Context, number: int, reply: Reply) -> None:
    """Write what a round gave into the client's own folder."""
    from lightning_privacy.callbacks.reporting.metrics_csv import MetricsCSV

    run, settings = RunFolder(_own(context)), read_settings(_own(context))
    MetricsCSV(run.metrics).log_metrics({k: v for k, v in reply.metrics.items() if k != "num-examples"}, step=number)
    if number == settings.rounds and not reply.arrays:
        for name, value in reply.metrics.items():
            if name != "num-examples":
                line = {"kind": "utility", "name": name, "value": value, "n": int(reply.metrics["num-examples"])}
                run.append_measurement({**line, "step": number, "epoch": number * settings.local_epochs})


def _build(context: Context) -> ClientParts:
    with without_known_noise():
        return client_parts(_own(context))


client = client_app(
    _build,
    lambda context: _own(context) / "private",
    metrics=METRICS,
    checkpoint=lambda context: RunFolder(_own(context)).checkpoints / "last.ckpt",
    told=_note,
)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds; write why, where they fail."""
    folder = Path(os.environ[SERVER])
    try:
        with without_known_noise():
            parts = server_parts(folder)
            run_server(parts, grid)
        for logger in parts.loggers:
            finish = getattr(getattr(logger, "_experiment", None), "finish", None)
            if finish is not None:  # W&B writes until it is told to stop
                finish()
    except Exception as failure:
        said = f"{failure}\n\n{''.join(traceback.format_exception(failure))}"
        write_atomically(folder / ERROR, said)
        raise
