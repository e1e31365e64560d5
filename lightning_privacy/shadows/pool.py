"""A pool of shadow models: trained once, kept by content, shared among ranks and jobs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.attacks.membership.queries import MOST_QUERIES
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.ranks import alone
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.shadows.build import Build, build_shadow, seeded, shadow_seed
from lightning_privacy.shadows.canonical import digest
from lightning_privacy.shadows.evidence import ShadowEvidence
from lightning_privacy.shadows.key import build_parts, data_parts, module_parts, observation_parts, split_parts
from lightning_privacy.shadows.observe import observe_one
from lightning_privacy.shadows.refusals import CannotStack, why_not
from lightning_privacy.shadows.sequential import check_trainer, train_one, training_seed
from lightning_privacy.shadows.shadow_split import Records, ShadowSplit, shadow_roles
from lightning_privacy.shadows.sharing import resolve_share, wait_for_all
from lightning_privacy.shadows.steady import blanked, steady
from lightning_privacy.shadows.vectorised import Job, train_stacked
from lightning_privacy.shadows.weight_files import read_tensors, remove_abandoned, write_tensors

__all__ = ["ShadowPool"]

LINE_EVERY = 20  # seconds between lines of progress, chosen here


class ShadowPool:
    """Models trained like the target, each on a known random half of the records.

    Shadow 2j trains on a random half and shadow 2j + 1 on the other, so that every record is IN exactly half of them; a
    shadow is a function of the seed and its number, so that a larger pool reuses a smaller one. Each is one file, named
    by a digest of all that its weights are a function of: the records with their labels, the initial weights, every
    attribute of the module, its layers and its defences, the trainer's arguments, the versions of torch, Lightning,
    NumPy and any file of this package, and the user's files that hold the classes and functions in use, with the user's
    files that these import. A change in any of them trains anew, a new version of this package too, and an edit of a
    script that holds the module beside other things; an interruption loses the model or the models in work. Numbers
    that the code reads from elsewhere (a file, the environment, a global set at run time) belong into ``signature``. Each
    ``validation`` of the target is repeated, because early stopping may depend on it; ``limit_val_batches=0`` saves
    that time.

    Training at once and training one after the other do the same steps in another order of sums, and share their files.
    In float64 they agree to 1e-7; in float32 small networks agree to 1e-5 after short runs, but rounding grows with
    every step in deep ones (a ResNet differs by 3e-2 after 4 steps), as it does between two devices.

    Args:
        build: Function from a seed to an untrained module and its defences, fresh ones (``Defence.fresh``) each time.
        split: The target's split, set up.
        count: Shadow models, even.
        trainer: Arguments of `Trainer` as the target's, for one device; loggers, checkpoints and bars are off.
        folder: Where the files are kept; ranks and jobs that share work must see the same.
        seed: Of the halves, of the modules and of their training.
        roles: Roles whose records are halved.
        vectorised: Train several small models at once; ``auto`` does where it can and gains by it, and else says
            why not.
        batch_size: Records a training batch; None for the split's. Where the target trains on several processes, give
            the product.
        signature: Text that is part of every key, such as the run's configuration. With it, settings that have no plain
            form (a lock, an open file) stand in the key by their class alone; without it, they are an error.

    Raises:
        InputError: an argument is impossible, or, when a key is made, a setting has no form that a key can hold.
        SplitError: the split is not set up, or its data changed.

    Example:
        >>> pool = ShadowPool(build, split, 16, trainer={"max_epochs": 30}, folder="runs/shadows")  # doctest: +SKIP
        >>> pool.observe(queries=2).confidence.shape                                                # doctest: +SKIP
        torch.Size([1200, 16, 2])

    Source:
        arXiv 2112.03570, section V: shadow models, IN and OUT by halves.
    """

    def __init__(
        self,
        build: Build,
        split: MembershipSplit,
        count: int = 16,
        *,
        trainer: Mapping[str, Any],
        folder: str | Path,
        seed: int = 0,
        roles: Sequence[str] = ("member", "attack_nonmember", "holdout"),
        vectorised: bool | str = "auto",
        batch_size: int | None = None,
        signature: str | None = None,
    ) -> None:
        if count < 2 or count % 2:
            raise InputError(f"A pool of {count} shadow models has no halves: give an even number, at least 2.")
        if vectorised not in (True, False, "auto"):
            raise InputError(f"`vectorised` is {vectorised!r}; give True, False or 'auto'.")
        check_trainer(trainer)
        self.build, self.split, self.count, self.trainer = build, split, count, dict(trainer)
        self.folder, self.seed, self.roles = Path(folder), seed, tuple(roles)
        self.vectorised, self.batch_size, self.signature = vectorised, batch_size, signature or None
        self.records = Records.of(split, self.roles)
        self._common: dict[str, Any] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._example: dict[str, Any] = {}
        remove_abandoned(self.folder)
        self._whole: set[int] = set()

    def data(self, shadow: int) -> ShadowSplit:
        """Return the data of one shadow model, for training."""
        roles = shadow_roles(self.records, self.seed, shadow)
        order = derive_seed("shadow order", self.seed, shadow)
        return ShadowSplit(self.split, roles, self.records.contents, order, self.batch_size)

    def parts(self, shadow: int) -> dict[str, Any]:
        """Return what the weights of one shadow model are a function of, as plain values."""
        if shadow not in self._parts:
            with alone():
                if not self._common:
                    common = data_parts(self.records, self.batch_size, self.signature is not None)
                    self._common = {**common, **build_parts(self.build)}
                    self._example = steady(self._built(0), self._built(0))
                self._parts[shadow] = {
                    **self._common,
                    **split_parts(self.data(shadow)),
                    **blanked(self._built(shadow), {**self._example, "initial": None}),
                    "seed": shadow_seed(self.seed, shadow),
                    "signature": self.signature,
                }
        return self._parts[shadow]

    def _built(self, shadow: int) -> dict[str, Any]:
        module, callbacks = build_shadow(self.build, shadow_seed(self.seed, shadow))
        with seeded(training_seed(shadow_seed(self.seed, shadow))):
            module.configure_model()  # where many modules draw their first weights
        return module_parts(module, callbacks, self.trainer, self.signature is not None)

    def path(self, shadow: int) -> Path:
        """Return the file of one shadow model, whether it is there or not."""
        return self.folder / f"{digest(self.parts(shadow))}.safetensors"

    def state(self, shadow: int) -> dict[str, Tensor] | None:
        """Return the trained state of one shadow model, or None where no whole file holds it."""
        return read_tensors(self.path(shadow), digest(self.parts(shadow)))

    def train(self, share: tuple[int, int] | None = None) -> list[int]:
        """Train what is missing, and return the numbers of the shadow models that were trained here.

        Args:
            share: (i, n) trains only the shadows k with k % n == i and waits for nobody, for jobs that share a folder;
                None divides them among the ranks of the process group and waits for all.

        Raises:
            InputError: ``vectorised=True`` and the models cannot be trained at once, or a share that is none.
            PrivacyError: another rank failed.
        """
        part, parts = resolve_share(share)
        mine = [shadow for shadow in range(self.count) if shadow % parts == part]
        done: list[int] = []
        if share is not None:
            self._train(mine, done)
        else:
            self._together(lambda: self._train(mine, done))
        return done

    def observe(self, queries: int = 1, roles: Sequence[str] | None = None) -> ShadowEvidence:
        """Train what is missing and return the confidence of every shadow model in every record.

        Args:
            queries: Views of each record; see `query_views`.
            roles: Roles whose records are asked for, in this order; None for those of the pool.

        Raises:
            InputError: the files of another rank cannot be seen, or an impossible number of queries.
            MissingProtocolError: the module has no ``logits``.
            PrivacyError: another rank failed.
        """
        if not 1 <= queries <= MOST_QUERIES:
            raise InputError(f"A record can be queried in 1 to {MOST_QUERIES} views, not {queries}.")
        indices = list(dict.fromkeys(i for role in roles or self.roles for i in self.split.indices(role)))
        part, parts = resolve_share(None)
        mine = [shadow for shadow in range(self.count) if shadow % parts == part]
        self._together(lambda: self._observe(mine, queries, indices))
        found = [self._observed(shadow, queries, indices) for shadow in range(self.count)]
        if lost := [shadow for shadow, each in enumerate(found) if each is None]:
            raise InputError(
                f"What shadow {lost[0]} says of the records is not in {self.folder}: every rank must see the same folder."
            )
        inside = [self.records.inside(self.seed, shadow) for shadow in range(self.count)]
        return ShadowEvidence(
            tuple(self.split.record_ids[i] for i in indices),
            torch.stack([each for each in found if each is not None], dim=1),
            torch.tensor([[each.get(i, False) for each in inside] for i in indices]).view(len(indices), self.count),
        )

    def _together(self, work: Any) -> None:
        failure = None
        try:
            work()
        except Exception as error:  # the other ranks must hear of it instead of waiting
            failure = error
        wait_for_all(failure)

    def _train(self, shadows: Sequence[int], done: list[int]) -> None:
        # Verified once a process: the files may be large.
        missing = [k for k in shadows if k not in self._whole and self.state(k) is None]
        self._whole.update(set(shadows) - set(missing))
        said = time.monotonic()
        if missing:
            rank_zero_info(f"shadow models: {len(missing)} of {self.count} to train; they are kept in {self.folder}")
        for shadow, state, how in self._trained(missing):
            write_tensors(self.path(shadow), state, self.parts(shadow), trained=how)
            self._whole.add(shadow)
            done.append(shadow)
            if time.monotonic() - said > LINE_EVERY or len(done) == len(missing):
                rank_zero_info(f"shadow models: {len(done)} of {len(missing)} trained, {how}")
                said = time.monotonic()

    def _trained(self, shadows: Sequence[int]) -> Iterator[tuple[int, dict[str, Any], str]]:
        jobs = [Job(k, shadow_seed(self.seed, k), self.data(k)) for k in shadows]
        if jobs and self.vectorised is not False:
            try:
                self._check_stackable(jobs[0])
                for each in train_stacked(self.build, jobs, self.trainer, self.folder, self.vectorised == "auto"):
                    yield each.shadow, each.state, "at once"
                return
            except CannotStack as reason:
                if self.vectorised is True:
                    raise InputError(
                        f"Shadow models cannot be trained at once: {reason}. Leave `vectorised` at 'auto'."
                    ) from reason
                rank_zero_info(f"Shadow models are trained one after the other: {reason}.")
        for job in jobs:
            yield job.shadow, train_one(self.build, job.split, self.trainer, job.seed, self.folder), "one by one"

    def _check_stackable(self, job: Job) -> None:
        with alone():
            module, callbacks = build_shadow(self.build, job.seed)
        if reason := why_not(module, callbacks, job.split, self.trainer):
            raise CannotStack(reason)

    def _observed(self, shadow: int, queries: int, indices: Sequence[int]) -> Tensor | None:
        parts = self._observation(shadow, queries, indices)
        found = read_tensors(self._observed_path(parts), digest(parts))
        return None if found is None else found["confidence"]

    def _observation(self, shadow: int, queries: int, indices: Sequence[int]) -> dict[str, Any]:
        ids = [self.split.record_ids[i] for i in indices]
        return observation_parts(digest(self.parts(shadow)), queries, ids)

    def _observed_path(self, parts: Mapping[str, Any]) -> Path:
        return self.folder / f"{parts['shadow']}-{digest(parts)[:16]}.safetensors"

    def _observe(self, shadows: Sequence[int], queries: int, indices: Sequence[int]) -> None:
        missing = [k for k in shadows if self._observed(k, queries, indices) is None]
        self._train(missing, [])
        for shadow in missing:
            state = self.state(shadow)
            if state is None:
                raise InputError(f"{self.path(shadow)} was removed or changed while it was in use.")
            seed = shadow_seed(self.seed, shadow)
            seen = observe_one(self.build, seed, state, self.data(shadow), indices, self.trainer, queries, self.folder)
            parts = self._observation(shadow, queries, indices)
            write_tensors(self._observed_path(parts), {"confidence": seen}, parts)
