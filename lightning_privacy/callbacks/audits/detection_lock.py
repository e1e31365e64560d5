"""The lock audit of detectors as a callback."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.attacks.lock.detector import (
    DetectorWay,
    Scenes,
    ap50,
    best_edit,
    box_objects,
    residue_edits,
    trained_on,
)
from lightning_privacy.attacks.lock.guessing import PromptDictionary
from lightning_privacy.attacks.lock.target import Cost
from lightning_privacy.callbacks.audits.evidence import defences_of
from lightning_privacy.callbacks.audits.inversion_target import frozen
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.lock_guesses import guesses_for
from lightning_privacy.callbacks.audits.lock_pictures import AUX, SCORED
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split, role_indices
from lightning_privacy.callbacks.audits.untouched import on_device, on_rank_zero
from lightning_privacy.callbacks.model_lock.batches import raw_of
from lightning_privacy.callbacks.model_lock.detection import is_detector
from lightning_privacy.core.batches import images_of, targets_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.datamodules.locked import LockedDataModule, find_locked
from lightning_privacy.editors.editor import Editor
from lightning_privacy.errors import InputError, MissingProtocolError, NoEffectError
from lightning_privacy.metrics.detection import DetectionScores

__all__ = ["DetectionLockAudit"]

FAMILY, REFERENCE, STRONGEST = "detection_lock", "detection_lock_reference", "strongest"
_GUESSES = ("wrong_prompt", "wrong_seed", "empty_prompt", "prompt_dictionary", "other_editor")
_ALL = ("no_key", "mean_residual", *_GUESSES, "fine_tune")
_RIVAL = 0.5  # of UP: what an attacker may reach at a working lock
_FEW = 30


class Told(NamedTuple):
    """What is said of one way: AP50 on the attacker's own pictures, what was chosen there, what it took, if it converged."""

    own: float
    chosen: str
    cost: Cost
    converged: bool


class DetectionLockAudit(ResultAudit):
    """Use a locked detector without its key, and say how much each attacker finds: average precision of boxes at IoU .5.

    The attacker has the model, pictures of its own (role ``attack_nonmember``) with their objects, edits of them, and the
    editor, but not the key. A fifth of its pictures are for its choices, the strongest attack among them; each attack
    is then scored once on ``holdout``, beside UP (with the key) and the same network trained without the stolen weights.
    Results go to ``results.jsonl`` as ``detection_lock`` and ``detection_lock_reference``.

    Args:
        attacks: Of ``no_key`` (its value is LP), ``mean_residual``, ``wrong_prompt``, ``wrong_seed``, ``empty_prompt``,
            ``prompt_dictionary`` (the 70 published ones), ``other_editor`` and ``fine_tune``; all that apply if not given.
        shares: Numbers of labelled pictures for ``fine_tune``, as shares of the training set, at most what the attacker has.
        steps: Optimizer steps of ``fine_tune``.
        rates: Its learning rates; the attacker's own pictures choose.
        other_editor: An editor without a key, built by class path; tried with the right prompt.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        bootstrap: Resamples of pictures behind each 95 % interval.
        seed: Of the attacks and the bootstrap.

    Raises:
        InputError: an unknown attack, or a number out of range.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        NoEffectError: at the start of training, where no `LockedDataModule` with ``locked: true`` edits the pictures.
        MissingProtocolError: at the start of training, where the module is no detector.
    """

    def __init__(
        self,
        attacks: list[str] | None = None,
        shares: list[float] | None = None,
        steps: int = 200,
        rates: list[float] | None = None,
        other_editor: Editor | None = None,
        every_n_epochs: int | None = None,
        at_end: bool = True,
        bootstrap: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        strange = [name for name in attacks or [] if name not in _ALL]
        if strange:
            raise InputError(f"DetectionLockAudit knows no attack `{strange[0]}`; there are {', '.join(_ALL)}.")
        if any(not 0 < share <= 1 for share in shares or []) or steps < 1 or bootstrap < 1:
            raise InputError(
                f"DetectionLockAudit needs shares above 0 and at most 1, steps >= 1 and bootstrap >= 1, but got {shares}, "
                f"{steps}, {bootstrap}."
            )
        self.attacks = list(_ALL) if attacks is None else attacks
        self.shares, self.steps, self.rates = shares or [0.05, 0.1], steps, rates or [1e-4, 1e-3]
        self.other_editor, self.bootstrap, self.seed = other_editor, bootstrap, seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing of data and module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "DetectionLockAudit"), [AUX, SCORED], "DetectionLockAudit")
            self._locked(trainer)
            if not is_detector(pl_module) or not callable(getattr(pl_module, "detections", None)):
                raise MissingProtocolError(
                    f"DetectionLockAudit needs `{type(pl_module).__name__}.detections(images)` and `.batch_loss(batch)`, as "
                    "`ImageDetector` has them. A classifier's lock is audited by `lock`."
                )

    def _locked(self, trainer: L.Trainer) -> LockedDataModule:
        found = find_locked(getattr(trainer, "datamodule", None))
        if found is None or not found.locked:
            raise NoEffectError(
                "DetectionLockAudit: this model is not shown edited pictures, so that there is no lock to attack. Wrap the "
                "data in `LockedDataModule(inner, editor)`, inside `MembershipSplit`, with `locked: true`."
            )
        return found

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Attack the model on rank zero; every rank gets the results."""
        split, locked = find_split(trainer, "DetectionLockAudit"), self._locked(trainer)
        notes = (
            []
            if any(d.name == "model_lock" for d in defences_of(trainer))
            else ["No lock was trained into this model."]
        )
        with isolate_rng(), torch.inference_mode(False), torch.enable_grad(), frozen(module):
            scenes = {role: _read(module, split, role) for role in (AUX, SCORED)}
            ways = on_rank_zero(lambda: self._scored(module, locked.editor, split, scenes))
        up = ways["with_key"][0]
        attacks = [name for name in ways if name not in ("with_key", *(n for n in ways if n.startswith("scratch/")))]
        best = max(attacks, key=lambda name: ways[name][1].own)
        reached = ways[best][0]
        if reached.value > _RIVAL * up.value:
            notes.append(
                f"An attacker without the key reaches an AP50 of {reached.value:.2f} where the key gives {up.value:.2f} "
                f"(`{best}`): this lock does not hold."
            )

        def result(name: str, rate: Metric, way: Told, family: str, extra: Mapping[str, Any]) -> AttackResult:
            return AttackResult(
                family=family,
                attack=name,
                access=_access(name if name != STRONGEST else best),
                seed=self.seed,
                split_hash=split.split_hash,
                n={SCORED: len(scenes[SCORED].raw)},
                metrics={"box_ap50": rate, **({} if family == REFERENCE else {"share_of_up": _share(rate, up)})},
                converged=way.converged,
                strongest=name == STRONGEST,
                step=trainer.global_step,
                epoch=epoch,
                notes=tuple(notes),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                extra={"own_ap50": way.own, "chosen": way.chosen, "cost": asdict(way.cost), **extra},
            )

        out = [
            result(name, rate, way, FAMILY if name in attacks else REFERENCE, {}) for name, (rate, way) in ways.items()
        ]
        return [*out, result(STRONGEST, reached, ways[best][1], FAMILY, {"chosen_attack": best})]

    def _scored(
        self, module: Any, editor: Any, split: Any, scenes: Mapping[str, Scenes]
    ) -> dict[str, tuple[Metric, Told]]:
        own, scored = scenes[AUX], scenes[SCORED]
        order = torch.randperm(len(own.raw), generator=seeded_generator(self.seed, "own scenes")).tolist()
        cut = max(2, round(0.2 * len(order)))
        val, mine = own.at(order[:cut]), own.at(order[cut:])
        find = module.detections
        made = {"with_key": DetectorWay(find, ap50(find, val.keyed, val.targets)[0], Cost())}
        if "no_key" in self.attacks:
            made["no_key"] = DetectorWay(find, ap50(find, val.raw, val.targets)[0], Cost(queries=len(val.raw)))
        if "mean_residual" in self.attacks:
            made["mean_residual"] = best_edit(find, residue_edits(mine), val, Cost(pairs=len(mine.raw)))
        wanted = tuple(name for name in _GUESSES if name in self.attacks)
        for guess in guesses_for(editor, wanted, self.other_editor) if isinstance(editor, Editor) else ():
            edits = guess.edits if isinstance(guess, PromptDictionary) else {guess.name: guess.edit}
            made[guess.name] = best_edit(find, edits, val, Cost(), tell=len(edits) == 1)
        counts = {max(1, min(math.ceil(s * len(role_indices(split, "member"))), len(mine.raw))) for s in self.shares}
        for k in sorted(counts) if "fine_tune" in self.attacks else ():
            told = (module, mine, val, k, self.steps, self.rates, self.seed)
            made[f"fine_tune/{k}_labels"] = trained_on(*told)
            made[f"scratch/{k}_labels"] = trained_on(*told, fresh=True)
        rates = {name: self._rate(name, way, scored) for name, way in made.items()}
        # other ranks get what is said of a way, not the way
        return {name: (rates[name], Told(way.own, way.chosen, way.cost, way.converged)) for name, way in made.items()}

    def _rate(self, name: str, way: DetectorWay, scored: Scenes) -> Metric:
        value, found = ap50(way.find, scored.keyed if name == "with_key" else scored.raw, scored.targets)
        truth, n = box_objects(scored.targets), len(scored.raw)
        generator = seeded_generator(self.seed, "bootstrap of detections")
        values = []
        for _ in range(self.bootstrap):
            rows = torch.randint(n, (n,), generator=generator).tolist()
            scores = DetectionScores(masks=False, sync=False)
            scores.update([found[i] for i in rows], [truth[i] for i in rows])
            values.append(scores.compute().get("box_ap50", 0.0))
        low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
        few = f"{n} pictures: at least {_FEW} needed" if n < _FEW else ""
        return Metric(value, min(low, value), max(high, value), valid=not few, reason=few)

    def charted(self, results: Any) -> dict[str, float]:
        """Return what the loggers draw: every attack's AP50, and UP."""
        return {f"attack/{FAMILY}/{r.attack}/box_ap50": r.metrics["box_ap50"].value for r in results}

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the results that tell whether an audit has been done."""
        return {STRONGEST}


def _read(module: L.LightningModule, split: Any, role: str) -> Scenes:
    batches = [on_device(module, batch) for batch in split.loader(role)]
    targets = [target for batch in batches for target in targets_of(batch)]
    raw, keyed = (torch.cat([part(batch) for batch in batches]).float() for part in (raw_of, images_of))
    return Scenes(raw, keyed, targets)


def _access(name: str) -> str:
    kind = name.split("/")[0]
    return {
        "with_key": "the key",
        "no_key": "queries",
        "mean_residual": "queries and pairs of raw and edited pictures",
        "fine_tune": "weights and labelled pictures",
        "scratch": "labelled pictures alone",
    }.get(kind, "queries and the editor, not its key")


def _share(rate: Metric, up: Metric) -> Metric:
    if up.value <= 0:
        return Metric(float("nan"), valid=False, reason="nothing is found even with the key")
    return Metric(rate.value / up.value, valid=rate.valid, reason=rate.reason)
