"""The model, its data, its defences and what it claims, read from a run's folder."""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.registry import DEFENCES, defence_names
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.errors import InputError, PrivacyError
from lightning_privacy.report.dossier.models import Checkpoint, Claims, DataCard, Measurement, Number, Protection
from lightning_privacy.report.dossier.scrub import scrub_settings

__all__ = [
    "checkpoint_of",
    "claims_of",
    "data_card",
    "file_hash",
    "generalisation_gap",
    "key_fingerprints",
    "protections_of",
    "results_hash",
    "settings_of",
]

_KEPT = ("seed_everything", "trainer", "model", "data", "defences", "audits")
_OF_THE_MACHINE = ("logger", "default_root_dir", "callbacks", "plugins", "profiler")
_ACCURACIES = (("train/accuracy", "val/accuracy"), ("train/acc", "val/acc"))


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def checkpoint_of(run: RunFolder) -> Checkpoint | None:
    """Return what was attacked: the run's last checkpoint, its exported adapter, or a file trained elsewhere.

    Raises:
        InputError: the record of a file trained elsewhere cannot be read.
    """
    path = run.last_checkpoint()
    if path is None and run.adapter.is_dir():
        path = next(iter(sorted(run.adapter.glob("*.safetensors"))), None)
    if path is not None:
        return Checkpoint(
            path=path.relative_to(run.path).as_posix(), sha256=file_hash(path), n_bytes=path.stat().st_size
        )
    if not run.foreign.is_file():
        return None
    try:
        seen = json.loads(run.foreign.read_text(encoding="utf-8"))
        # the name alone: folders tell of people and machines
        return Checkpoint(path=Path(seen["path"]).name, sha256=seen["sha256"], n_bytes=seen["n_bytes"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise InputError(f"{run.foreign} cannot be read; delete it and audit the checkpoint again.") from wrong


def key_fingerprints(run: RunFolder, defended: bool) -> tuple[dict[str, str], list[str]]:
    """Return the key fingerprints in the checkpoint's defence manifest, and what must be said where it is unreadable.

    Args:
        run: The run.
        defended: Whether it has defences; the file is not opened where it has none.
    """
    path = run.last_checkpoint()
    if path is None and run.foreign.is_file():
        return {}, [
            "The model was trained elsewhere: its settings, its defences and who is a member are what the auditor's "
            "configuration says."
        ]
    if path is None:
        return {}, ["There is no checkpoint in the run's folder, so that the weights that were attacked are not named."]
    if not defended:
        return {}, []
    import torch

    from lightning_privacy.core.manifest_record import read_manifest

    try:
        manifest = read_manifest(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (PrivacyError, RuntimeError, ValueError, OSError, EOFError, KeyError, pickle.UnpicklingError):
        return {}, [f"The defence manifest of {path.name} could not be read, so that no key fingerprint is given."]
    defences = (manifest or {}).get("defences", {})
    return {n: str(d["key_fingerprint"]) for n, d in defences.items() if d.get("key_fingerprint")}, []


def data_card(run: RunFolder, split_hashes: Sequence[str]) -> DataCard:
    """Return counts of the roles and the hash of the split; no id.

    Raises:
        InputError: ``split.json`` cannot be read.
    """
    raw: dict[str, Any] = {}
    if run.split.is_file():
        try:
            raw = json.loads(run.split.read_text(encoding="utf-8"))
            roles = {str(role): len(ids) for role, ids in raw["roles"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            raise InputError(f"The split record {run.split} cannot be read; restore it from the run.") from wrong
    else:
        roles = {}
    recorded = str(raw.get("split_hash") or "")
    if recorded and any(h != recorded for h in split_hashes):
        raise InputError(
            f"The results of {run.path} are on split {next(h for h in split_hashes if h != recorded)[:12]}, its split "
            f"record is {recorded[:12]}: they are about other records. Audit the run again."
        )
    seed = raw.get("split_seed", raw.get("seed"))
    return DataCard(
        split_sha256=recorded or next(iter(split_hashes), ""),
        roles=roles,
        split_seed=seed if isinstance(seed, int) else None,
        unit_of_privacy="record",
    )


def record_ids(run: RunFolder) -> list[str]:
    """Return every id of the split record, to make sure that none leaves."""
    if not run.split.is_file():
        return []
    roles = json.loads(run.split.read_text(encoding="utf-8")).get("roles", {})
    return sorted({str(i) for ids in roles.values() for i in ids})


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
    for name, args in defences.items():
        knowing = _adaptive_attacks(name)
        run = [a for a in knowing if a in attacks]
        plain = args.get("init_args", args)
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


def claims_of(defences: Mapping[str, Mapping[str, Any]], measurements: Sequence[Measurement]) -> Claims | None:
    """Return the run's claim of differential privacy: what its accountant measured, else what a defence promises."""
    spent = {m.name: m.number.value for m in sorted(measurements, key=lambda m: m.step) if m.kind == "privacy"}
    measured = spent.get("epsilon")
    if measured is not None:
        return Claims(epsilon=measured, delta=spent.get("delta"), source="measurement privacy/epsilon")
    for name, raw in defences.items():
        args = raw.get("init_args", raw)
        delta = args.get("target_delta", args.get("delta"))
        # An epsilon without a delta may be anything, such as the radius of an adversarial perturbation.
        epsilon = args.get("target_epsilon", args.get("epsilon") if delta is not None else None)
        if isinstance(epsilon, float | int) and not isinstance(epsilon, bool):
            known = float(delta) if isinstance(delta, float | int) else None
            return Claims(epsilon=float(epsilon), delta=known, source=f"settings of the defence {name}")
    return None


def generalisation_gap(run: RunFolder, measurements: Sequence[Measurement]) -> Number | None:
    """Return training minus validation accuracy: as measured, else from the last logged values, else None."""
    measured = [m for m in measurements if m.name == "generalisation_gap"]
    if measured:
        return max(measured, key=lambda m: m.step).number
    rows = read_metrics(run.metrics)
    for names in _ACCURACIES:
        last = [next((row[n] for row in reversed(rows) if row.get(n)), None) for n in names]
        if last[0] is not None and last[1] is not None:
            return Number(value=float(last[0]) - float(last[1]), method="last logged values, no interval")
    return None


def _adaptive_attacks(defence: str) -> list[str]:
    """Return the names of the attacks that know a registered defence; of an unknown defence, none."""
    if defence not in defence_names():
        return []
    paths = getattr(DEFENCES.load(defence), "adaptive_attacks", ())
    return [str(getattr(import_object(path), "name", path)) for path in paths]
