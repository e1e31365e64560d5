"""A trained classifier as a target folder that SACRO-ML loads and attacks."""

import keyword
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import yaml

from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.callbacks.audits.split_access import check_roles, role_indices
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_network import CLASS_NAME, NetworkSource
from lightning_privacy.interop.sacro_pictures import find_network, probabilities, read_pictures

__all__ = ["export_target"]

_ARRAYS = (
    *(f"{name}_{side}{original}" for original in ("", "_orig") for side in ("train", "test") for name in "Xy"),
    "proba_train",
    "proba_test",
    "indices_train",
    "indices_test",
)
_TRAIN_SOURCE = '''"""Training of a network from scratch, as the audited model was trained."""

import torch


def train(model, dataloader, epochs, optimizer, **options):
    """Minimise the cross-entropy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    steps = getattr(torch.optim, optimizer)(model.parameters(), **options)
    for _ in range(epochs):
        for pictures, labels in dataloader:
            steps.zero_grad()
            torch.nn.functional.cross_entropy(model(pictures.to(device)), labels.to(device)).backward()
            steps.step()
    model.cpu().eval()
'''


def export_target(
    module: L.LightningModule,
    split: Any,
    folder: str | os.PathLike[str],
    *,
    kind: str = "probabilities",
    members: str | None = None,
    training: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Path:
    """Write a classifier as a target of SACRO-ML 2: its members as training data, the hold-out as test data.

    ``sacroml run FOLDER attacks.yaml`` and ``Target().load(FOLDER)`` read it. Its format is pickles; ours hold plain
    arrays, and we read none. With ``"probabilities"`` neither records nor weights leave: its worst-case attack runs.
    With ``"full"`` its attacks with shadow models (LiRA) run too: pictures, labels, weights and a torch class that
    rebuilds the network are written. The class needs torch alone. It is the outermost part of the module that
    `torch.fx` can record and whose output is ``logits(batch)``, and the pictures are what that part is given, so after
    any normalisation in front of it. What was written is loaded and compared with the module before it is handed over.

    SACRO-ML trains its shadow models on the unaugmented pictures, from torch's own first weights, at a constant
    learning rate. It finds ``model.py`` by its folder's name in the working directory: run it from the folder's parent.

    Args:
        module: Has ``logits(batch)``.
        split: A set-up `MembershipSplit`.
        folder: To be made, or empty.
        kind: ``"probabilities"`` or ``"full"``.
        members: Role of the members. None is ``"eval_member"`` for probabilities, which leaves out those that a defence
            may have fitted on, and ``"member"`` for a full target, whose shadow models are trained on as many records.
        training: For ``"full"``, how the model was trained: ``epochs``, ``optimizer`` (a name in `torch.optim`) and the
            optimizer's arguments, such as ``{"epochs": 30, "optimizer": "SGD", "lr": 0.1, "momentum": 0.9}``.
        batch_size: Records a training step; the split's own if None.

    Returns:
        The folder.

    Raises:
        InputError: an argument is unknown, the folder is not empty or its name is of no use, the training is not
            described, or the network cannot be written as a class.
        MissingProtocolError: the module is no classifier.
        SplitError: a role is empty.
    """
    path = Path(folder)
    roles = (members or ("member" if kind == "full" else "eval_member"), "holdout")
    if kind not in ("probabilities", "full") or roles[0] not in ("eval_member", "member"):
        raise InputError(
            f"A SACRO-ML target cannot be of kind={kind!r} with members={members!r}; kinds are probabilities and full, "
            "members are eval_member and member."
        )
    on_rank_zero(lambda: _check_folder(path, importable=kind == "full"))
    check_roles(split, roles, "A SACRO-ML target")
    size = batch_size or int(split.pool.batch_size)
    described: dict[str, Any] = {
        "dataset_name": type(getattr(split, "inner", split)).__name__,
        "dataset_module_path": "",
        "features": {},
        "generalisation_gap": float("nan"),
        "safemodel": [],
    }
    if kind == "full":
        train_params = _check_training(training)
        made, arrays = _full(module, split, roles, size)
        described |= {
            "generalisation_gap": _gap(arrays),
            "model_type": "PytorchModel",
            "model_name": CLASS_NAME,
            "model_params": {},
            "batch_size": size,
            "model_module_path": "model.py",
            "train_module_path": "train.py",
            "train_params": train_params,
            "model_path": "model.pt",
        }
    else:
        signals = compute_signals(module, split, roles, {"logits"}, batch_size=batch_size)
        made, logits = None, [signals[role].logits for role in roles]
        arrays = {
            name: x[:, 0].double().softmax(1).numpy()
            for name, x in zip(("proba_train", "proba_test"), logits, strict=True)
            if x is not None
        }
    described |= {f"{name}_path": f"{name}.pkl" if name in arrays else "" for name in _ARRAYS}
    on_rank_zero(lambda: _write(path, described, arrays, made))
    return path


def _full(
    module: L.LightningModule, split: Any, roles: tuple[str, str], size: int
) -> tuple[NetworkSource, dict[str, np.ndarray]]:
    found = find_network(module, split, roles[0])
    arrays: dict[str, np.ndarray] = {}
    for side, role in zip(("train", "test"), roles, strict=True):
        x, y = read_pictures(module, split, role, found)
        arrays |= {f"X_{side}": x, f"y_{side}": y, f"proba_{side}": probabilities(found.rebuilt, x, size)}
        arrays[f"indices_{side}"] = np.asarray(role_indices(split, role), dtype=np.int64)
    return found.made, arrays


def _gap(arrays: Mapping[str, np.ndarray]) -> float:
    train, test = ((arrays[f"proba_{side}"].argmax(1) == arrays[f"y_{side}"]).mean() for side in ("train", "test"))
    return float(train - test)


def _write(
    path: Path, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], made: NetworkSource | None
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        with (path / f"{name}.pkl").open("wb") as file:
            pickle.dump(np.ascontiguousarray(array), file, protocol=pickle.HIGHEST_PROTOCOL)
    if made is not None:
        (path / "__init__.py").write_text('"""A target of SACRO-ML."""\n', encoding="utf-8")
        (path / "model.py").write_text(made.source, encoding="utf-8")
        (path / "train.py").write_text(_TRAIN_SOURCE, encoding="utf-8")
        torch.save(made.state, path / "model.pt")
    # Last, so that a target without it is known to be unfinished.
    (path / "target.yaml").write_text(yaml.safe_dump(dict(described), sort_keys=False), encoding="utf-8")


def _check_folder(path: Path, importable: bool) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"{path} is there and not empty, and a target must not be mixed with other files; name a new folder."
        )
    name = path.resolve().name
    if importable and (not name.isidentifier() or keyword.iskeyword(name) or name in sys.stdlib_module_names):
        raise InputError(
            f"SACRO-ML imports `{name}.model`, which Python cannot do or takes for its own module; call the folder by "
            "letters, digits and underscores, such as `target`."
        )


def _check_training(training: Mapping[str, Any] | None) -> dict[str, Any]:
    example = 'training={"epochs": 30, "optimizer": "SGD", "lr": 0.1}'
    if training is None or not {"epochs", "optimizer"} <= set(training):
        raise InputError(
            f"SACRO-ML trains shadow models of a full target and must know how; give epochs and optimizer, such as {example}."
        )
    params = dict(training)
    epochs, name = params["epochs"], params["optimizer"]
    optimizer = getattr(torch.optim, name, None) if isinstance(name, str) else None
    if not isinstance(epochs, int) or epochs < 1 or not isinstance(optimizer, type):
        raise InputError(
            f"epochs={epochs!r} or optimizer={name!r} is of no use; give a number >= 1 and a name, such as {example}."
        )
    options = {
        key: list(v) if isinstance(v, tuple) else v for key, v in params.items() if key not in ("epochs", "optimizer")
    }
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))], **options)
        yaml.safe_dump(options)
    except (TypeError, ValueError, yaml.YAMLError) as wrong:
        raise InputError(
            f"torch.optim.{name} does not take {options} ({wrong}); give its arguments, such as {example}."
        ) from wrong
    return {"epochs": epochs, "optimizer": name, **options}
