"""The model, its settings, its defences and its accuracies, read from a run's folder."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.registry import DEFENCES, defence_names
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.dossier.file_hash import file_hash
from lightning_privacy.report.dossier.models import Measurement, Number, Parent, Protection
from lightning_privacy.report.dossier.scrub import scrub_settings
from lightning_privacy.report.run_settings import arguments_of
from lightning_privacy.report.summary import logged_numbers

__all__ = ["generalisation_gap", "parents_of", "protections_of", "results_hash", "settings_of"]

_KEPT = ("seed_everything", "trainer", "model", "data", "defences", "audits")
_OF_THE_MACHINE = ("logger", "default_root_dir", "callbacks", "plugins", "profiler")
_ACCURACIES = (("train/accuracy", "val/accuracy"), ("train/acc", "val/acc"))


def results_hash(run: RunFolder) -> str:
    """Return the sha256 of a run's attack results without the times at which they were made.

    An audit that was interrupted and resumed says the same as one that was not.
    """
    lines = "".join(f"{replace(result, created='').to_json()}\n" for result in run.results())
    return hashlib.sha256(lines.encode()).hexdigest()


def settings_of(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the part of a configuration that says how the model was made, without what is of the machine."""
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    if isinstance(kept.get("trainer"), Mapping):
        trainer = kept["trainer"].items()
        kept["trainer"] = {k: v for k, v in trainer if k not in _OF_THE_MACHINE and v is not None}
    return scrub_settings(kept, folder)


def parents_of(settings: Mapping[str, Any]) -> list[Parent]:
    """Return the weights that training started from: a hub's or the package's name, or a file, which is hashed.

    Args:
        settings: The run's configuration.
    """
    model = settings.get("model")
    start = arguments_of(model).get("pretrained") if isinstance(model, Mapping) else None
    if not isinstance(start, str) or not start:
        return []
    file = Path(start)
    looks_local = file.is_absolute() or file.suffix in (".safetensors", ".ckpt", ".bin") or file.exists()
    name = file.name if looks_local else start  # where a file lies is the machine's business
    return [Parent(what="weights", name=name, sha256=file_hash(file) if file.is_file() else None)]


def protections_of(
    defences: Mapping[str, Mapping[str, Any]],
    attacks: Sequence[str],
    fingerprints: Mapping[str, str],
    folder: Path,
) -> tuple[list[Protection], list[str]]:
    """Return the defences, and where no attack that knows them was run.

    Args:
        defences: Settings by registered name.
        attacks: Names of the attacks that gave results on this model.
        fingerprints: Of keys, by defence.
        folder: The run's folder.
    """
    made, gaps = [], []
    # one that is run several times adds how: `fine_tune/64_labels`
    there = {*attacks, *(a.split("/")[0] for a in attacks)}
    for name, args in defences.items():
        knowing = _adaptive_attacks(name)
        run = [a for a in knowing if a in there]
        plain = arguments_of(args)
        made.append(
            Protection(
                name=name,
                settings=scrub_settings({k: v for k, v in plain.items() if v is not None}, folder),
                key_fingerprint=fingerprints.get(name),
                adaptive_attacks=knowing,
                attacked=run,
            )
        )
        if not knowing:
            gaps.append(f"The defence `{name}` names no attack that knows it, so that it was not tested as it must be.")
        elif not run:
            gaps.append(
                f"The defence `{name}` was not attacked by one that knows it ({', '.join(knowing)}); run "
                "`lightning-privacy audit` with it."
            )
    return made, gaps


def generalisation_gap(run: RunFolder, measurements: Sequence[Measurement]) -> Number | None:
    """Return training minus validation accuracy: as measured, else from the last logged values, else None.

    Raises:
        InputError: a logged accuracy is no number.
    """
    measured = [m for m in measurements if m.name == "generalisation_gap"]
    if measured:
        return max(measured, key=lambda m: m.step).number
    for names in _ACCURACIES:
        last = [next(reversed(logged_numbers(run, name).values()), math.nan) for name in names]
        if all(map(math.isfinite, last)):
            return Number(value=last[0] - last[1], method="last logged values, no interval")
    return None


def _adaptive_attacks(defence: str) -> list[str]:
    """Return the names of the attacks that know a registered defence; of an unknown defence, none."""
    if defence not in defence_names():
        return []
    paths = getattr(DEFENCES.load(defence), "adaptive_attacks", ())
    return [str(getattr(import_object(path), "name", path)) for path in paths]
