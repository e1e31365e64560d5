"""The verb federate: a recipe as a federation of several clients on this machine, by Flower."""

import argparse
import json
from pathlib import Path
from typing import Any

from lightning_privacy.errors import InputError

__all__ = ["run"]

_LOCAL = ("none", "statistics", "norms")
_ANY: dict[str, Any] = {"logger": False, "profiler": None, "enable_progress_bar": False, "enable_model_summary": False}


def run(verb: str, args: list[str]) -> int:
    """Run server and clients as processes over loopback; print each round, and a table of the clients."""
    chosen, rest = _parser(verb).parse_known_args(args or ["--help"])
    from lightning_privacy.federated.flower import require_flower

    if chosen.clients < 2 or chosen.rounds < 1 or chosen.local_epochs < 1:
        raise InputError(
            f"A federation needs at least 2 clients, 1 round and 1 local epoch; it was given {chosen.clients}, {chosen.rounds} "
            f"and {chosen.local_epochs}."
        )
    require_flower()
    from lightning_privacy.cli.federate_config import Settings, write_folders
    from lightning_privacy.federated.flower.loopback import Loopback, free_port, run_on_loopback

    free_port(chosen.port)
    settings = Settings(
        chosen.clients, chosen.rounds, chosen.local_epochs, chosen.strategy, chosen.local, float(chosen.timeout)
    )
    root, raw = _recipe(rest, settings)
    server, clients = write_folders(root, raw, settings)
    print(
        f"{len(clients)} clients, {settings.rounds} rounds of {settings.local_epochs} epoch(s), folder {root}",
        flush=True,
    )
    watch = _Rounds(server / "rounds.json", settings.clients)
    run_on_loopback(Loopback(server, clients, "lightning_privacy.cli.federate_app", chosen.port), watch)
    _table(server, clients)
    return 0


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Train a recipe as a federation: Flower's server and one process a client, over loopback. Each client has "
        "its share of the data, a private folder (mode 0700) and a vault of its own.",
        epilog="Further options are those of `fit`: --config FILE (several), --model.*, --data.*, --defences.*, --run_name.",
        allow_abbrev=False,
    )
    parser.add_argument("--clients", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--local_epochs", type=int, default=1, help="epochs of a round (default: %(default)s)")
    parser.add_argument(
        "--strategy", default="FedAvg", help="FedAvg, FedMedian or FedTrimmedAvg (default: %(default)s)"
    )
    parser.add_argument(
        "--local",
        choices=_LOCAL,
        default="none",
        help="what stays beside secrets; norms is FedBN (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="of the server on loopback (default: a free one)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a client may take (default: %(default)s)")
    return parser


def _recipe(args: list[str], settings: Any) -> tuple[Path, dict[str, Any]]:
    """Parse the recipe, build it once to see whether it can be, and return its folder and configuration."""
    import yaml

    from lightning_privacy.cli.environment import environment_of
    from lightning_privacy.cli.federate_config import client_config
    from lightning_privacy.cli.privacy_cli import PrivacyCLI
    from lightning_privacy.cli.run_config import dump_config
    from lightning_privacy.core.conflicts import find_conflicts, order_defences, raise_conflicts
    from lightning_privacy.core.defence import Defence
    from lightning_privacy.datamodules.client_part import ClientPart
    from lightning_privacy.federated.flower.server import Rounds, make_strategy

    make_strategy(settings.strategy, Rounds(settings.clients))
    cli = PrivacyCLI(args, run=False, trainer_overrides=_ANY)
    defences = order_defences([d for d in cli.defences.values() if isinstance(d, Defence)])
    raise_conflicts(find_conflicts(defences, environment_of(cli.config, cli.model)))
    if cli.trainer.num_devices * cli.trainer.num_nodes > 1:
        raise InputError(
            f"A client trains on one device here, and the recipe asks for {cli.trainer.num_devices}. Set "
            "`trainer.devices` to 1."
        )
    raw = yaml.safe_load(dump_config(cli.parser, cli.config))
    client_config(raw, cli.run_folder.path, 0, settings)  # says what the recipe lacks
    inner = cli.datamodule
    while type(inner).__name__ in ("MembershipSplit", "CanaryData"):
        inner = inner.inner
    first = ClientPart(inner, 0, settings.clients)
    first.prepare_data()  # here, once: clients would download side by side
    first.setup("fit")
    first.train_dataloader()
    return cli.run_folder.path, raw


class _Rounds:
    """Prints a line for every round that is over."""

    def __init__(self, file: Path, clients: int) -> None:
        self.file, self.clients, self.printed = file, clients, 0

    def __call__(self) -> None:
        if not self.file.is_file():
            return
        told = json.loads(self.file.read_text(encoding="utf-8"))
        for number in sorted(map(int, told)):
            here = list(told[str(number)].values())
            if number > self.printed and len(here) == self.clients and all("val/accuracy" in c for c in here):
                self.printed = number
                shown = ", ".join(
                    f"{name} {_mean(here, name):.3f}" for name in ("train/loss", "val/loss", "val/accuracy")
                )
                print(f"round {number}: {shown}", flush=True)


def _mean(clients: list[dict[str, float]], name: str) -> float:
    total = sum(c["num-examples"] for c in clients)
    return sum(c[name] * c["num-examples"] for c in clients) / total


def _table(server: Path, clients: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    told = json.loads((server / "rounds.json").read_text(encoding="utf-8"))
    table = Table("client", "rounds", "n (validation)", "accuracy, own key", "validation loss")
    for number, folder in enumerate(clients):
        own = [of_round[str(number)] for _, of_round in sorted(told.items(), key=lambda item: int(item[0]))]
        last = own[-1]
        n, accuracy, loss = int(last["num-examples"]), f"{last['val/accuracy']:.3f}", f"{last['val/loss']:.3f}"
        table.add_row(folder.name, str(len(own)), str(n), accuracy, loss)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(
        "Each client's accuracy is that of the averaged weights with its own private layers, on its own records."
    )
