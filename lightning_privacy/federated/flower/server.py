"""A Flower ServerApp: first weights of a defended model, Flower's own strategy, and a record of every round."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp import strategy as strategies  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords  # pyright: ignore[reportMissingImports]
from lightning.pytorch.loggers import Logger
from safetensors.torch import save_file

from lightning_privacy.core.defence import Defence
from lightning_privacy.core.run_folder import RunFolder, write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.federated.flower.records import to_arrays
from lightning_privacy.federated.shared import Local, prepare_module, read_shared, shared_names

__all__ = ["STRATEGIES", "Rounds", "ServerParts", "make_strategy", "run_server", "server_app"]

STRATEGIES = ("FedAvg", "FedMedian", "FedTrimmedAvg")
"""Strategies of Flower's that ask nothing of clients and average running statistics to something that is a variance."""
_WEIGHT = "num-examples"


@dataclass
class ServerParts:
    """What a server needs.

    Args:
        module: Built as the clients'; its weights are the first ones.
        clients: How many clients take part in every round; the run fails where one fails.
        rounds: How many rounds.
        defences: The clients' defences, which say what layers there are; no secret is needed.
        local: As the clients'.
        strategy: Name of a strategy of Flower's (`STRATEGIES`).
        loggers: Lightning's loggers, such as an offline ``WandbLogger``; a step is a round.
        folder: Where results are written; None writes nothing.
        timeout: Seconds that a client may take for a round.
    """

    module: L.LightningModule
    clients: int
    rounds: int
    defences: Sequence[Defence] = ()
    local: Local = "none"
    strategy: str = "FedAvg"
    loggers: Sequence[Logger] = ()
    folder: Path | None = None
    timeout: float | int = 3600


@dataclass
class Rounds:
    """What the clients told in every round.

    Args:
        clients: How many there are.
        loggers: Where averages and the clients' numbers are logged.
        file: Where all rounds so far are written, as JSON.
        told: By round, client and name.
    """

    clients: int
    loggers: Sequence[Logger] = ()
    file: Path | None = None
    told: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    number: int = 0

    def average(self, replies: list[RecordDict], weighted_by: str) -> MetricRecord:
        """Note what each client told, log it, and return Flower's average of it, weighted by records.

        Args:
            replies: One a client.
            weighted_by: Name of the weight.

        Raises:
            InputError: a client did not answer.
        """
        if len(replies) < self.clients:
            raise InputError(
                f"Only {len(replies)} of {self.clients} clients answered in round {self.number}. The run ends here: an average "
                "of fewer would be of another federation. The client's own folder says why it failed."
            )
        records: list[dict[str, Any]] = [dict(next(iter(reply.metric_records.values()))) for reply in replies]
        here = self.told.setdefault(self.number, {})
        for told in records:
            here.setdefault(int(told["client"]), {}).update({k: float(v) for k, v in told.items() if k != "client"})
        without = [
            RecordDict({"m": MetricRecord({k: v for k, v in each.items() if k != "client"})}) for each in records
        ]
        mean: MetricRecord = aggregate_metricrecords(without, weighted_by)
        means: dict[str, Any] = dict(mean)
        row = {name: float(value) for name, value in means.items()}
        for told in records:
            row |= {f"client_{int(told['client'])}/{k}": float(v) for k, v in told.items() if k != "client"}
        for logger in self.loggers:
            logger.log_metrics(row, step=self.number)
        if self.file is not None:
            plain = {str(r): {str(c): v for c, v in sorted(t.items())} for r, t in self.told.items()}
            write_atomically(self.file, json.dumps(plain, indent=1))
        return mean


def make_strategy(name: str, rounds: Rounds) -> Any:
    """Return a strategy of Flower's in which all clients take part in every round.

    Args:
        name: One of `STRATEGIES`.
        rounds: Hears what clients tell.

    Raises:
        InputError: there is no such strategy here.
    """
    if name not in STRATEGIES:
        raise InputError(
            f"There is no strategy {name!r} here; choose one of {', '.join(STRATEGIES)}. Others of Flower's can be used in an "
            "app of your own, with `client_app`."
        )
    n = rounds.clients
    chosen = getattr(strategies, name)(
        min_train_nodes=n,
        min_evaluate_nodes=n,
        min_available_nodes=n,
        weighted_by_key=_WEIGHT,
        train_metrics_aggr_fn=rounds.average,
        evaluate_metrics_aggr_fn=rounds.average,
    )
    configure = chosen.configure_train

    def counted(server_round: int, *args: Any, **kwargs: Any) -> Any:
        rounds.number = server_round
        return configure(server_round, *args, **kwargs)

    chosen.configure_train = counted
    return chosen


def run_server(parts: ServerParts, grid: Grid) -> Rounds:
    """Run all rounds by a strategy of Flower's, and write what came out.

    Args:
        parts: The server's.
        grid: Flower's connection to the clients.

    Returns:
        What the clients told.

    Raises:
        InputError: a client failed, or did not answer in time.
    """
    prepare_module(parts.module, parts.defences)
    names = shared_names(parts.module, parts.local)
    rounds = Rounds(parts.clients, parts.loggers, parts.folder and parts.folder / "rounds.json")
    strategy = make_strategy(parts.strategy, rounds)
    config = {"rounds": parts.rounds}
    result = strategy.start(
        grid=grid,
        initial_arrays=to_arrays(read_shared(parts.module, names)),
        num_rounds=parts.rounds,
        timeout=float(parts.timeout),
        train_config=ConfigRecord(dict(config)),
        evaluate_config=ConfigRecord(dict(config)),
    )
    if len(result.train_metrics_clientapp) < parts.rounds or len(result.evaluate_metrics_clientapp) < parts.rounds:
        raise InputError(
            f"No client answered in one of the {parts.rounds} rounds, so that there is no result. Their own folders say why."
        )
    if parts.folder is not None:
        _write(parts.folder, rounds, result.arrays)
    return rounds


def server_app(build: Callable[[Context], ServerParts]) -> ServerApp:
    """Return a Flower ServerApp.

    Args:
        build: Makes the server's parts from Flower's context.

    Returns:
        The app, for the ``serverapp`` component of a Flower app.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_server(build(context), grid)

    return app


def _write(folder: Path, rounds: Rounds, arrays: ArrayRecord) -> None:
    """Write the last round's numbers as measurements, and the global weights."""
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last = max(rounds.told)
    for client, told in sorted(rounds.told[last].items()):
        for name, value in told.items():
            if name != _WEIGHT:
                line = {
                    "kind": "utility",
                    "name": f"client_{client}/{name}",
                    "value": value,
                    "step": last,
                    "epoch": last,
                }
                run.append_measurement({**line, "n": int(told[_WEIGHT])})
    # Last of all: whoever waits for the result finds everything else there.
    save_file({k: v.contiguous() for k, v in arrays.to_torch_state_dict().items()}, folder / "global.safetensors")
