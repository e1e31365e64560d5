"""The optimizer's memory of secret parameters: taken out of a checkpoint, and put back on resume.

The gradient of a lock's weights is an outer product with the key, and so is its momentum: one row divided by the bias's
momentum *is* the key. A checkpoint without secret weights gives them away all the same if it holds these entries.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_module import named_secret_parameters

__all__ = ["join_optimizer_states", "split_optimizer_states"]

_STATES = "optimizer_states"


def split_optimizer_states(
    checkpoint: Mapping[str, Any], module: nn.Module, optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take what optimizers remember of secret parameters out of a checkpoint.

    Args:
        checkpoint: Lightning's checkpoint, with ``optimizer_states`` in the order of the optimizers, or without (a
            weights-only one); it stays as it is.
        module: The module whose `SecretModule` children hold the secret parameters.
        optimizers: The optimizers.

    Returns:
        The checkpoint without those entries, and the entries: for `save_private_states`, never for the checkpoint.

    Raises:
        InputError: the states are not those of the optimizers, or an optimizer mixes its parameters (LBFGS).
    """
    if _STATES not in checkpoint:
        return dict(checkpoint), {"optimizers": []}
    states = checkpoint[_STATES]
    _check_number(states, optimizers)
    secret, names = named_secret_parameters(module), _names(module)
    hidden = {id(p) for p in secret.values()}
    clean, private = [], []
    for state, optimizer in zip(states, optimizers, strict=True):
        order = _order(optimizer, names)
        _check_groups(state, order, optimizer)
        own = [p for group in optimizer.param_groups for p in group["params"]]
        indices = [i for group in state["param_groups"] for i in group["params"]]
        kept = {i: names.get(id(p), "") for i, p in zip(indices, own, strict=True) if id(p) in hidden}
        if kept:
            _refuse_mixtures(state, optimizer, own)
        clean.append({**state, "state": {i: entry for i, entry in state["state"].items() if i not in kept}})
        taken = {name: state["state"][i] for i, name in kept.items() if i in state["state"]}
        private.append({"order": order, "state": taken})
    return {**checkpoint, _STATES: clean}, {"optimizers": private}


def join_optimizer_states(
    checkpoint: Mapping[str, Any], private: Mapping[str, Any], module: nn.Module, optimizers: Sequence[Optimizer]
) -> dict[str, Any]:
    """Put back what `split_optimizer_states` took out.

    Entries are found by the parameters' names. Where the optimizers hold their parameters or groups in another order
    than when the checkpoint was written, the whole state is brought into the new order: PyTorch goes by position.

    Args:
        checkpoint: A checkpoint as `split_optimizer_states` returned it; it stays as it is.
        private: The entries.
        module: The module, with its secret modules in place.
        optimizers: The optimizers that the states are for.

    Returns:
        A checkpoint whose ``optimizer_states`` the optimizers can load.

    Raises:
        InputError: optimizers, groups or parameters are not those of the entries.
    """
    if not private["optimizers"] and _STATES not in checkpoint:
        return dict(checkpoint)
    states = checkpoint.get(_STATES, [])
    _check_number(states, optimizers)
    _check_number(private["optimizers"], optimizers)
    names, joined = _names(module), []
    for state, kept, optimizer in zip(states, private["optimizers"], optimizers, strict=True):
        then, now = [list(group) for group in kept["order"]], _order(optimizer, names)
        _check_groups(state, then, optimizer)
        place = {
            name: i
            for group, order in zip(state["param_groups"], then, strict=True)
            for i, name in zip(group["params"], order, strict=True)
        }
        if unknown := sorted(set(kept["state"]) - set(place)):
            raise InputError(
                f"The private optimizer state holds {unknown}, which the checkpoint's optimizer does not have."
            )
        entries = {**state["state"], **{place[name]: entry for name, entry in kept["state"].items()}}
        groups = [_group_for(order, then, state["param_groups"], place) for order in now]
        joined.append({**state, "state": entries, "param_groups": groups})
    return {**checkpoint, _STATES: joined}


def _group_for(
    order: list[str], then: list[list[str]], groups: Sequence[Mapping[str, Any]], place: Mapping[str, Any]
) -> dict[str, Any]:
    for saved, group in zip(then, groups, strict=True):
        if sorted(saved) == sorted(order):
            moved = {**group, "params": [place[name] for name in order]}
            if "param_names" in group:
                own = dict(zip(saved, group["param_names"], strict=True))
                moved["param_names"] = [own[name] for name in order]
            return moved
    raise InputError(
        f"No parameter group of the checkpoint holds the same parameters as this optimizer's group of {len(order)} "
        f"({', '.join(order[:3])}, ...). Build the optimizers as they were when the checkpoint was written."
    )


def _names(module: nn.Module) -> dict[int, str]:
    return {id(p): name for name, p in module.named_parameters()}


def _order(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """Return the names of the parameters of each group; what is not the module's is named by its position."""
    position = itertools.count()
    groups = [group["params"] for group in optimizer.param_groups]
    return [[names.get(id(p), f"#{i}") for p, i in zip(params, position, strict=False)] for params in groups]


def _check_number(states: Sequence[Any], optimizers: Sequence[Optimizer]) -> None:
    if len(states) != len(optimizers):
        raise InputError(
            f"There are states of {len(states)} optimizers for {len(optimizers)} optimizers. Build as many as there were."
        )


def _check_groups(state: Mapping[str, Any], order: list[list[str]], optimizer: Optimizer) -> None:
    if [len(group["params"]) for group in state["param_groups"]] != [len(group) for group in order]:
        raise InputError(
            f"The checkpoint's state of {type(optimizer).__name__} has other parameter groups than the optimizer. Build it "
            "as it was when the checkpoint was written."
        )


def _refuse_mixtures(state: Mapping[str, Any], optimizer: Optimizer, own: list[Tensor]) -> None:
    """Refuse states in which secret parameters cannot be told from the others: one vector for all of them."""
    total = sum(p.numel() for p in own)
    sizes = dict(zip((i for g in state["param_groups"] for i in g["params"]), (p.numel() for p in own), strict=True))
    extra = [key for key, value in state.items() if key not in ("state", "param_groups") and [*_tensors(value)]]
    mixed = [
        i
        for i, entry in state["state"].items()
        for tensor in _tensors(entry)
        if tensor.numel() == total and tensor.numel() != sizes.get(i)
    ]
    if mixed or extra or isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(
            f"{type(optimizer).__name__} keeps secret and public parameters in one state, which cannot be taken apart, so a "
            "checkpoint would give the secrets away. Use an optimizer with a state for each parameter (SGD, Adam), or an "
            "optimizer of their own for the secret parameters."
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)
