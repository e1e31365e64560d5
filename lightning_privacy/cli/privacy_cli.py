"""LightningCLI with named groups of defences and audits, and a folder for each run."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lightning_privacy.callbacks.reporting.metrics_csv import MetricsCSV
from lightning_privacy.cli.default_callbacks import default_callbacks
from lightning_privacy.cli.environment import environment_of
from lightning_privacy.cli.parser import PrivacyParser, known_keys, unknown_empty_keys
from lightning_privacy.cli.run_config import SaveRunConfig, choose_run_folder, derive, dump_config
from lightning_privacy.cli.shadow_build import ShadowBuild
from lightning_privacy.core.conflicts import find_conflicts, order_defences, raise_conflicts
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.registry import AUDITS, DEFENCES
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import PrivacyError

__all__ = ["PrivacyCLI"]

_LIBRARIES = ("lightning_privacy.modules", "lightning_privacy.datamodules", "lightning_privacy.editors")


class PrivacyCLI(LightningCLI):
    """The parser of every verb that trains or rebuilds a run, and with ``run=True`` the verb itself.

    Beside LightningCLI's ``trainer``, ``model`` and ``data`` it has ``defences.<name>`` and ``audits.<name>`` for
    whatever is registered: absent or null means off, ``{}`` means the class's defaults. Our modules and datamodules
    are found by class name alone.

    Args:
        args: The command line, verb first if ``run``.
        run: Whether the first argument is a verb to run; else everything is only built.
        trainer_overrides: Trainer arguments that win over the configuration.
    """

    def __init__(self, args: list[str], *, run: bool = True, trainer_overrides: dict[str, Any] | None = None) -> None:
        _import_libraries()
        self.run_folder = RunFolder("runs")
        self.trainer_overrides = trainer_overrides or {}
        self._verb_runs = run
        modes = {verb: {"parser_mode": "omegaconf", "prog": f"lightning-privacy {verb}"} for verb in self.subcommands()}
        super().__init__(
            args=args,
            run=run,
            save_config_callback=None,  # ours writes into the run's folder, and later
            seed_everything_default=0,
            parser_class=PrivacyParser,
            parser_kwargs={"parser_mode": "omegaconf", "prog": "lightning-privacy", **(modes if run else {})},
            auto_configure_optimizers=False,  # it would build the optimizer before defences add their layers
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's folder, and one group for each registered defence and audit."""
        parser.add_argument("--run_name", type=str | None, default=None, help="The run's folder becomes runs/RUN_NAME.")
        parser.add_argument("--run_dir", type=str | None, default=None, help="The run's folder; wins over run_name.")
        if not self._verb_runs:  # so that a run's own config.yaml, which a fit wrote, can be checked and audited
            for name in ("ckpt_path", "weights_only"):
                parser.add_argument(f"--{name}", type=Any, default=None, help="Of no meaning here.")
        for group, registry in (("defences", DEFENCES), ("audits", AUDITS)):
            for name, cls in registry.classes().items():
                parser.add_subclass_arguments(cls, f"{group}.{name}", required=False, fail_untyped=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without LightningCLI's warning about arguments that come from Python."""
        self.config = parser.parse_args(args)
        verb = self.config.get("subcommand")
        chosen = self._parser(verb)
        for file in (self.config[verb] if verb else self.config).get("config") or ():
            for path in unknown_empty_keys(yaml.safe_load(Path(str(file)).read_text()), known_keys(chosen)):
                chosen.error(f"Option '{path}' is not accepted")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the configuration alone says what the model is, a checkpoint's hyper-parameters do not."""

    def instantiate_classes(self) -> None:
        """Build everything from the configuration completed by the run's folder; the configuration stays as given."""
        complete = self.config.clone()
        mine: Namespace = complete[self.subcommand] if self.subcommand else complete
        self.run_folder = choose_run_folder(mine)
        derive(mine, self.run_folder)
        for key, value in self.trainer_overrides.items():  # here, so that nothing that is overridden gets built
            mine[f"trainer.{key}"] = value
        self.config_init = self._build(complete)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        for audit in self.audits.values():
            if getattr(audit, "shadows", 0) and getattr(audit, "shadow_build", None) is None:
                build = ShadowBuild(self._parser(self.subcommand), mine)
                audit.shadow_build = build  # pyright: ignore[reportAttributeAccessIssue]
        self.trainer = self.instantiate_trainer()

    def _build(self, config: Namespace) -> Namespace:
        try:
            return self.parser.instantiate(config)
        except ValueError as failure:
            # jsonargparse reports whatever a constructor raises as a failed attempt at a union's first member
            said = failure.__cause__ or failure.__context__
            if isinstance(said, PrivacyError):
                raise said from None
            raise

    @property
    def defences(self) -> dict[str, L.Callback]:
        """The configured defences by name, in registry order."""
        return self._group("defences", DEFENCES.names())

    @property
    def audits(self) -> dict[str, L.Callback]:
        """The configured audits by name, in registry order."""
        return self._group("audits", AUDITS.names())

    def _group(self, group: str, names: list[str]) -> dict[str, L.Callback]:
        built = self._get(self.config_init, group) or {}
        return {name: built[name] for name in names if built.get(name) is not None}

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with the configured callbacks, defences, audits, then the defaults."""
        trainer = {**vars(self._get(self.config_init, "trainer")), **kwargs}
        given = trainer.get("callbacks") or []
        callbacks = [*(given if isinstance(given, list) else [given]), *self.defences.values(), *self.audits.values()]
        if self._verb_runs:
            # Judged as text, before Lightning asks for the GPU or the package that a refused strategy would need.
            ordered = order_defences([c for c in callbacks if isinstance(c, Defence)])
            config = self.config[self.subcommand] if self.subcommand else self.config
            raise_conflicts(find_conflicts(ordered, environment_of(config, self.model)))
            callbacks += default_callbacks(trainer, callbacks, self.run_folder)
            if self.subcommand == "fit" and not trainer.get("fast_dev_run"):
                text = dump_config(self._parser(self.subcommand), self.config[self.subcommand])
                callbacks.append(SaveRunConfig(text))
        trainer["callbacks"] = callbacks
        trainer["logger"] = _with_metrics_csv(trainer.get("logger"), self.run_folder)
        return self.trainer_class(**trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; a run that is refused before training starts leaves no folder behind."""
        existed, refused = self.run_folder.path.exists(), True
        try:
            super()._run_subcommand(subcommand)
            refused = False
        finally:
            _finish_wandb(self.trainer, failed=refused)
            nothing_began = refused and subcommand == "fit" and not existed and not self.run_folder.configs()
            if nothing_began and self.trainer.is_global_zero:
                shutil.rmtree(self.run_folder.path, ignore_errors=True)


def _import_libraries() -> None:
    """Import our modules and datamodules, so that they are known by class name alone."""
    for library in map(importlib.import_module, _LIBRARIES):
        for name in getattr(library, "__all__", ()):
            try:
                getattr(library, name)
            except ImportError:
                continue  # needs an extra; its full class_path will say which


def _with_metrics_csv(logger: Any, run: RunFolder) -> bool | list[Logger]:
    if logger is False:
        return False
    given = [] if logger in (None, True) else logger if isinstance(logger, list) else [logger]
    return [*given, MetricsCSV(run.metrics)]


def _finish_wandb(trainer: L.Trainer, failed: bool) -> None:
    """End the W&B runs: W&B writes until it is told to stop, and the next run of this process would continue them."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "_experiment", None), "finish", None)
        if finish is not None:
            finish(exit_code=int(failed))
