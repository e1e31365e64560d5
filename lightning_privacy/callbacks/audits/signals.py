"""What attacks see: errors, reference errors, maps, scores and features of records, once for all attacks."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.callbacks.audits.boundary_signals import (
    BOUNDARY_QUERIES,
    STARTS_ROLE,
    Starts,
    find_starts,
    role_distances,
)
from lightning_privacy.callbacks.audits.class_scores import class_scores
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan, draws_itself
from lightning_privacy.callbacks.audits.shadow_signals import SHADOW_FIELDS
from lightning_privacy.callbacks.audits.split_access import batch_records, role_indices
from lightning_privacy.callbacks.audits.untouched import gather_parts, on_device, rank, untouched
from lightning_privacy.core.batches import labels_of
from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.ranks import world_size
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import MissingProtocolError, SplitError

__all__ = ["ErrorFunction", "ReferenceCache", "available_signals", "compute_signals", "missing_signals", "pooled_map"]

ErrorFunction = Callable[[Any, Any, Any], Tensor]
"""(module, batch, draw) -> error of each sample, for modules without `per_sample_error`."""

ReferenceCache = dict[str, dict[str, Tensor]]
"""Reference signals by record id: the base model and the draws are fixed, so they are computed once a run."""

MAP_SIDE = 8  # 8 x 8 x 4 = 256 features of a latent error map
_FROM_ERROR = {"loss": "reference_loss", "error_map": "reference_error_map"}
ALL_ERRORS = {*_FROM_ERROR, *_FROM_ERROR.values()}
_SNIPPET = """    def per_sample_error(self, batch, draw=None):
        x, y = batch
        return torch.nn.functional.cross_entropy(self(x), y, reduction="none")"""


def available_signals(module: Any, error_fn: ErrorFunction | str | None = None, *, costly: bool = False) -> set[str]:
    """Return the fields of `Signals` that a module can give.

    Args:
        module: The module.
        error_fn: See `compute_signals`.
        costly: With those that take many hundred queries a record (``boundary_distance``), which nobody should get who
            has not asked for an attack by name.
    """
    found: set[str] = set()
    if error_fn is not None or callable(getattr(module, "per_sample_error", None)):
        found |= set(_FROM_ERROR)
        if callable(getattr(module, "reference", None)):
            found |= set(_FROM_ERROR.values())
    if callable(getattr(module, "logits", None)):
        found |= {"logits", "labels"}
        if costly:
            found.add("boundary_distance")
    if callable(getattr(module, "embedding", None)):
        found.add("embedding")
    return found


def pooled_map(error: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
    """Return error maps as vectors, pooled to at most 8 x 8 where they have two spatial dimensions."""
    if error.ndim == 4:
        error = F.adaptive_avg_pool2d(error, (min(error.shape[2], MAP_SIDE), min(error.shape[3], MAP_SIDE)))
    return error.flatten(1) if error.ndim > 1 else error.unsqueeze(1)


def compute_signals(
    module: L.LightningModule,
    split: Any,
    roles: Sequence[str],
    requires: Collection[str],
    *,
    plan: DrawPlan | None = None,
    batch_size: int | None = None,
    error_fn: ErrorFunction | str | None = None,
    cache: ReferenceCache | None = None,
    queries: int = 1,
    boundary_queries: int = BOUNDARY_QUERIES,
    label_queries: dict[str, Tensor] | None = None,
) -> dict[str, Signals]:
    """Observe the records of some roles on fixed draws; ranks share the work and all get everything.

    The module's weights, statistics, mode and the global random state are as before afterwards.

    Args:
        module: The audited module.
        split: A set-up `MembershipSplit`.
        roles: Its roles, ``eval_member`` included.
        requires: Fields of `Signals` to fill; others stay None.
        plan: The draws.
        batch_size: Records at once; the datamodule's own if None.
        error_fn: Function (module, batch, draw) -> error, or its import path, for a module without
            `per_sample_error`.
        cache: Filled with, and read for, the reference signals. Only for one plan and one base model.
        queries: Views of each record whose class scores are observed, see `query_views`.
        boundary_queries: Predicted classes that the search for ``boundary_distance`` may ask for, a record; searches
            start from the split's ``attack_nonmember``; what they find is a function of the plan's seed and the role's
            records.
        label_queries: Filled with the number of them that each record took, by role, where distances were measured.

    Returns:
        The signals of each role, on the CPU, records in the order of the role.

    Raises:
        InputError: class scores are not one row a record, more views are asked for than there are, or no search for the
            decision boundary can start.
        MissingProtocolError: the module cannot give one of the fields.
        SplitError: a loader does not yield the records of its role.
    """
    missing = set(requires) - available_signals(module, error_fn, costly=True)
    if missing:
        raise missing_signals(module, missing)
    observer = _Observer(
        module, set(requires), plan or DrawPlan(), import_object(error_fn), {} if cache is None else cache, queries
    )
    with untouched(module):
        if "boundary_distance" in requires:
            records = sum(len(role_indices(split, role)) for role in roles)
            rank_zero_info(
                f"Measuring distances from the decision boundary: at most {boundary_queries} label queries for each of "
                f"{records} records, from starts in `{STARTS_ROLE}`."
            )
            observer.boundary = find_starts(module, split, observer.plan.seed), boundary_queries
        signals = {role: observer.role(split, role, batch_size) for role in roles}
    if label_queries is not None:
        label_queries.update(observer.label_queries)
    return signals


def missing_signals(module: Any, fields: Collection[str], attack: str = "") -> MissingProtocolError:
    """Return the error that says what to add to a module.

    Args:
        module: The module.
        fields: Fields of `Signals` that it cannot give.
        attack: Who needs them.
    """
    name, party = type(module).__name__, f"The attack `{attack}`" if attack else "An attack"
    if set(fields) & set(_FROM_ERROR):
        return MissingProtocolError(
            f"{party} needs `{name}.per_sample_error`. Add it, or pass `error_fn`. For a classifier:\n{_SNIPPET}"
        )
    if set(fields) & ALL_ERRORS:
        return MissingProtocolError(
            f"{party} needs the error of `{name}` before fine-tuning, but it has no `reference()`. Add a context "
            "manager under which the module is its base model, or leave the attack out."
        )
    if set(fields) & SHADOW_FIELDS:
        return MissingProtocolError(
            f"{party} needs shadow models. Give the audit a number of them (`shadows: 16`), or leave the attack out."
        )
    if "boundary_distance" in fields and callable(getattr(module, "logits", None)):
        return MissingProtocolError(
            f"{party} needs many hundred label queries a record, which are made only where an attack is asked for by "
            "name. Name it in `MembershipAudit(attacks=[...])`, or leave it out."
        )
    if "boundary_distance" in fields:
        return MissingProtocolError(
            f"{party} needs the predicted classes of `{name}`, but it has no `logits(batch)`. Add it, returning one row "
            "of class scores a record, or leave the attack out."
        )
    return MissingProtocolError(f"{party} needs {', '.join(sorted(fields))}, but `{name}` has no such method.")


class _Observer:
    """Runs a module over roles and collects rows."""

    def __init__(
        self,
        module: L.LightningModule,
        requires: set[str],
        plan: DrawPlan,
        error_fn: ErrorFunction | None,
        cache: ReferenceCache,
        queries: int,
    ) -> None:
        self.module, self.requires, self.cache, self.queries = module, requires, cache, queries
        self.error_fn = error_fn
        self.plan = plan
        self.fitted = False
        self.boundary: tuple[Starts, int] | None = None  # and the budget of a record
        self.label_queries: dict[str, Tensor] = {}

    def role(self, split: Any, role: str, batch_size: int | None) -> Signals:
        indices = role_indices(split, role)
        every_id = tuple(split.record_ids[i] for i in indices)
        parts: dict[int, dict[str, Tensor]] = {}
        seen = 0
        for number, batch in enumerate(split.loader(role, batch_size)):
            ids = every_id[seen : seen + _length(batch)]
            seen += _length(batch)
            batch_records(batch, ids, role)
            if not self.fitted:  # on every rank, by the same batch
                self.plan, self.fitted = self.fitted_plan(on_device(self.module, batch), ids), True
            if len(ids) == _length(batch) and number % world_size() == rank():
                parts[number] = self.batch(on_device(self.module, batch), ids)
        if seen != len(indices):
            raise SplitError(f"The loader of the role `{role}` yields {seen} records, but the role has {len(indices)}.")
        rows = gather_parts(parts)
        fields = {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}
        if self.boundary is not None and indices:
            starts, budget = self.boundary
            search = role_distances(self.module, split, role, starts, seed=self.plan.seed, queries=budget)
            fields["boundary_distance"], self.label_queries[role] = search.distance, search.queries
        schedule = None if draws_itself(self.module) else self.plan.schedule()
        return Signals(every_id, timesteps=schedule, **fields)

    def batch(self, batch: Any, ids: tuple[str, ...]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if self.requires & set(_FROM_ERROR):
            out |= self.errors(batch, ids, set(_FROM_ERROR) & self.requires)
        wanted = {name for name, reference in _FROM_ERROR.items() if reference in self.requires}
        if wanted:
            out |= {_FROM_ERROR[name]: value for name, value in self.reference(batch, ids, wanted).items()}
        if "logits" in self.requires:
            out["logits"] = class_scores(self.module, batch, self.queries)
        if "labels" in self.requires:
            out["labels"] = labels_of(batch).cpu()
        if "embedding" in self.requires:
            out["embedding"] = self.module.embedding(batch).float().flatten(1).cpu()  # pyright: ignore[reportCallIssue]
        return out

    def fitted_plan(self, batch: Any, ids: tuple[str, ...]) -> DrawPlan:
        if not self.requires & ALL_ERRORS:
            return self.plan
        plan = self.plan.fit_to(self.module, batch)
        if not draws_itself(self.module) or len(plan) == 1:
            return plan
        # A module that draws by itself and gives the same error under two seeds has no randomness.
        self.plan = replace(plan, timesteps=(), per_timestep=2)
        first, second = self.errors(batch, ids, {"loss"})["loss"].unbind(1)
        return replace(self.plan, per_timestep=1) if torch.equal(first, second) else plan

    def reference(self, batch: Any, ids: tuple[str, ...], wanted: set[str]) -> dict[str, Tensor]:
        if not all(i in self.cache and wanted <= set(self.cache[i]) for i in ids):
            with self.module.reference():  # pyright: ignore[reportCallIssue]
                rows = self.errors(batch, ids, wanted)
            for row, i in enumerate(ids):
                self.cache[i] = {name: value[row] for name, value in rows.items()}
        return {name: torch.stack([self.cache[i][name] for i in ids]) for name in wanted}

    def errors(self, batch: Any, ids: tuple[str, ...], wanted: set[str]) -> dict[str, Tensor]:
        columns: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for k, draw in enumerate(self.plan.draws(self.module, batch, ids)):
            if draw is None:
                self.plan.pin(k, ids)
            if self.error_fn is not None:
                error = self.error_fn(self.module, batch, draw)
            else:
                error = self.module.per_sample_error(batch, draw)  # pyright: ignore[reportCallIssue]
            error = error.float()
            if "loss" in columns:
                columns["loss"].append((error.flatten(1).mean(1) if error.ndim > 1 else error).cpu())
            if "error_map" in columns:
                columns["error_map"].append(pooled_map(error).cpu())
        return {name: torch.stack(column, dim=1) for name, column in columns.items()}


def _length(batch: Any) -> int:
    """Return the number of records of a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    for part in parts:
        length = _length(part)
        if length:
            return length
    return 0
