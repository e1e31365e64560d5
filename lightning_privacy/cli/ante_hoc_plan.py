"""What a configuration says about the training to come, read without data, weights or a GPU; None is "not known"."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

from lightning_privacy.core.defence import Defence
from lightning_privacy.datamodules.split_record import read_record_file

__all__ = ["TrainingPlan", "found", "plan_of", "planned_records", "role_counts"]

_SHOTS = 10  # pictures of each person in the ORL faces
_TRAINING_SETS = {"CIFAR10": 50_000, "CIFAR100": 50_000, "MNIST": 60_000, "FashionMNIST": 60_000}


@dataclass(frozen=True)
class TrainingPlan:
    """The training to come, as far as its configuration tells.

    Args:
        epochs: Most epochs; None where steps or nothing limit it.
        records: Records of the pool.
        roles: Records by role, ``eval_member`` included; None for a role whose size is not known.
        batch_size: Records a batch and process.
        parameters: Weights that are built without reading anything; None where the model builds them later.
        weight_decay: Of the optimizer.
        augment: Whether records are augmented.
        early_stopping: Whether a callback ends training early.
        label_smoothing: Of the training loss.
        mixup: Alpha of mixup.
        pretrained: Weights that training starts from.
        lr_scheduler: Class of the schedule, with its arguments.
        split: Whether there is a membership split.
        canaries: Planted canaries; None for no `CanaryData`.
        audits: Arguments of each configured audit.
        defences: The configured defences.
    """

    epochs: int | None = None
    records: int | None = None
    roles: Mapping[str, int | None] = field(default_factory=dict)
    batch_size: int | None = None
    parameters: int | None = None
    weight_decay: float | None = None
    augment: bool | None = None
    early_stopping: bool = False
    label_smoothing: float | None = None
    mixup: float | None = None
    pretrained: str | None = None
    lr_scheduler: tuple[str, Mapping[str, Any]] | None = None
    split: bool = False
    canaries: int | None = None
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defences: tuple[Defence, ...] = ()


def found(tree: Any, name: str) -> Iterator[Any]:
    """Yield the values under a key anywhere in nested mappings and lists, outermost first.

    Example:
        >>> list(found({"inner": [{"seed": 1}], "seed": 0}, "seed"))
        [0, 1]
    """
    if isinstance(tree, Mapping):
        if name in tree:
            yield tree[name]
        for value in tree.values():
            yield from found(value, name)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from found(value, name)


def plan_of(cli: Any, records: int | None = None, parameters: int | None = None) -> TrainingPlan:
    """Return what a parsed and instantiated command line says.

    Args:
        cli: A `PrivacyCLI` with ``run=False``.
        records: Size of the pool where the user tells it; else taken from datamodules that know it without data.
        parameters: Number of weights where the user tells it; else of those that are built by now.
    """
    config = cli.config.as_dict()
    model, data, trainer = (config.get(name) or {} for name in ("model", "data", "trainer"))
    chain = list(_chain(cli.datamodule))
    split = next((d for d in chain if hasattr(d, "fractions") and hasattr(d, "split_seed")), None)
    pool = records if records is not None else next((n for d in chain if (n := planned_records(d)) is not None), None)
    canaries = next((d.count for d in chain if hasattr(d, "canary_hash")), None)
    epochs = trainer.get("max_epochs")
    scheduler = next((s for s in found(model, "lr_scheduler") if isinstance(s, Mapping)), None)
    parameters = parameters or sum(p.numel() for p in cli.model.parameters())
    return TrainingPlan(
        epochs=epochs if isinstance(epochs, int) and epochs > 0 else None,
        records=pool,
        roles={} if split is None else role_counts(split, pool),
        batch_size=_first(found(data, "batch_size"), int),
        # A module that reads its weights in `configure_model` has only buffers and heads by now.
        parameters=parameters or None,
        weight_decay=_first(found(model, "weight_decay"), (int, float)),
        augment=_first(found(data, "augment"), bool),
        early_stopping=any(isinstance(c, EarlyStopping) for c in cli.trainer.callbacks),
        label_smoothing=_first(found(model, "label_smoothing"), (int, float)),
        mixup=_first(found(model, "mixup"), (int, float)),
        pretrained=_first(found(model, "pretrained"), str),
        lr_scheduler=None
        if scheduler is None
        else (str(scheduler.get("class_path")).rpartition(".")[2], scheduler.get("init_args") or {}),
        split=split is not None,
        canaries=canaries,
        audits={name: _arguments(config, name) for name in cli.audits},
        defences=tuple(d for d in cli.trainer.callbacks if isinstance(d, Defence)),
    )


def _chain(datamodule: Any) -> Iterator[Any]:
    while datamodule is not None:
        yield datamodule
        datamodule = getattr(datamodule, "inner", None)


def _first(values: Iterator[Any], kind: Any) -> Any:
    return next((v for v in values if isinstance(v, kind)), None)


def _arguments(config: Mapping[str, Any], audit: str) -> Mapping[str, Any]:
    given = (config.get("audits") or {}).get(audit) or {}
    return given.get("init_args") or {}


def planned_records(datamodule: Any) -> int | None:
    """Return how many records a datamodule has where it says so without reading them, else None.

    Example:
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> planned_records(ToyImages(n=40))
        40
    """
    name = type(datamodule).__name__
    if name == "Faces":
        return _SHOTS * len(datamodule.people)
    if name == "Digits":
        return 1797
    if name == "TorchvisionImages":
        return _TRAINING_SETS.get(datamodule.name)
    number = getattr(datamodule, "n", None)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def role_counts(split: Any, records: int | None) -> dict[str, int | None]:
    """Return the records of each role that a `MembershipSplit` will draw, to within one; None where nobody knows.

    Args:
        split: The split, not set up.
        records: Size of the pool; None if not known.

    Example:
        >>> from lightning_privacy.datamodules.membership_split import MembershipSplit
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> counts = role_counts(MembershipSplit(ToyImages(), fractions={"holdout": 25}), None)
        >>> counts["holdout"], counts["member"]
        (25, None)
    """
    given = getattr(split, "given_roles", None)
    if isinstance(given, str | Path):
        given = read_record_file(given)["roles"] if Path(given).is_file() else {}
    if given:
        counts: dict[str, int | None] = {role: len(entries) for role, entries in given.items()}
    else:
        drawn = {role: value for role, value in split.fractions.items() if role != "aux_member"}
        counts = {role: _of(value, records) for role, value in drawn.items()}
    if counts.get("aux_member") is None:
        counts["aux_member"] = _of(split.fractions["aux_member"], counts.get("member"))
    member, aux = counts.get("member"), counts["aux_member"]
    counts["eval_member"] = None if member is None or aux is None else member - aux
    return counts


def _of(share: float | int, whole: int | None) -> int | None:
    if share > 1 or share == 0:
        return int(share)
    return None if whole is None else int(share * whole)
