"""The verb check: would this recipe run, and what would it do? No data, no GPU, no weights."""

from typing import Any

from rich.console import Console

from lightning_privacy.cli.ante_hoc import ante_hoc_options, report
from lightning_privacy.cli.environment import environment_of, strategy_name
from lightning_privacy.cli.privacy_cli import PrivacyCLI
from lightning_privacy.core.conflicts import find_conflicts, order_defences, raise_conflicts
from lightning_privacy.core.defence import Defence

__all__ = ["run"]

_ANY_LAPTOP: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,
    "plugins": None,
    "logger": False,
    "profiler": None,
    "sync_batchnorm": False,
    "deterministic": None,
    "benchmark": None,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Trainer arguments that let a cluster's recipe be built anywhere; what they replace is judged as text."""


def run(verb: str, args: list[str]) -> int:
    """Build a recipe without running it; print the resolved order of defences, or every conflict.

    With ``--ante-hoc`` also what rules say against the configuration; ``--records N`` and
    ``--parameters N`` tell them the size of the pool and of the model where the configuration does not.
    """
    if not args:
        args = ["--help"]
    asked, args = ante_hoc_options(args)
    cli = PrivacyCLI(args, run=False, trainer_overrides=_ANY_LAPTOP)
    defences = [d for d in cli.trainer.callbacks if isinstance(d, Defence)]  # pyright: ignore[reportAttributeAccessIssue]
    ordered = order_defences(defences)
    raise_conflicts(find_conflicts(ordered, environment_of(cli.config, cli.model)))
    _show(cli, ordered)
    return report(cli, asked.records, asked.parameters) if asked.ante_hoc else 0


def _show(cli: PrivacyCLI, defences: list[Defence]) -> None:
    console = Console(soft_wrap=True)
    trainer = cli.config["trainer"]
    places = [
        strategy_name(trainer.get("strategy")),
        f"devices {trainer.get('devices')}",
        f"nodes {trainer.get('num_nodes')}",
    ]
    length = [
        f"{trainer.get(k)} {k.removeprefix('max_')}" for k in ("max_epochs", "max_steps") if _positive(trainer.get(k))
    ]
    facts = {
        "run folder": str(cli.run_folder.path),
        "model": type(cli.model).__name__,
        "data": _data_words(cli.datamodule),
        "trainer": ", ".join([*places, f"precision {trainer.get('precision') or '32-true'}", *length]),
        "audits": ", ".join(cli.audits) or "none: nothing will attack the result",
        "seed": str(cli.config.get("seed_everything")),
    }
    for name, value in facts.items():
        console.print(f"[bold]{name:>10}[/]  {value}", highlight=False)
    if not defences:
        console.print("[bold]  defences[/]  none: this is an undefended run", highlight=False)
        return
    console.print("[bold]  defences[/]  in the order in which they act:", highlight=False)
    for number, defence in enumerate(defences, 1):
        console.print(f"  {number}. [bold]{defence.name}[/]", highlight=False)
        for name, value in _facts(defence).items():
            console.print(f"{name:>15}  {value}", highlight=False)
    console.print("No conflicts.")


def _facts(defence: Defence) -> dict[str, str]:
    return {
        "acts on": ", ".join(slot.name.lower() for slot in sorted(defence.slots)),
        "requires": ", ".join(sorted(p.name.lower() for p in defence.requires)) or "nothing",
        "breaks": ", ".join(sorted(p.name.lower() for p in defence.breaks)) or "nothing",
        "cost": str(getattr(defence, "cost", "") or f"see `lightning-privacy defences show {defence.name}`"),
        "attacked by": ", ".join(path.rpartition(":")[2] for path in defence.adaptive_attacks)
        or "no attack that knows it: evidence will be insufficient",
        "guarantee": defence.guarantee,
    }


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _data_words(datamodule: Any) -> str:
    names = []
    while datamodule is not None:
        names.append(type(datamodule).__name__)
        datamodule = getattr(datamodule, "inner", None)
    return " around ".join(names) or "the module's own loaders"
