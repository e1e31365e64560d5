"""The inversion audit as a callback."""

from collections.abc import Sequence
from typing import Any, get_args

import lightning.pytorch as L

from lightning_privacy.attacks.inversion.registry import DEFAULT_ATTACKS, INVERSION_ATTACKS, build_inversion_attacks
from lightning_privacy.attacks.inversion.target import InversionAttack, Tap
from lightning_privacy.callbacks.audits.evidence import defences_of, inversion_attacks_of
from lightning_privacy.callbacks.audits.inversion_audit import InversionPlan, audit_inversion
from lightning_privacy.callbacks.audits.inversion_grid import save_reconstructions
from lightning_privacy.callbacks.audits.inversion_pictures import AUX, VICTIM_ROLES
from lightning_privacy.callbacks.audits.inversion_results import FEWEST_VICTIMS
from lightning_privacy.callbacks.audits.inversion_tap import STRONGEST
from lightning_privacy.callbacks.audits.inversion_target import check_taps
from lightning_privacy.callbacks.audits.life_cycle import ResultAudit
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.publishing import chart_values
from lightning_privacy.callbacks.audits.split_access import check_roles, find_split
from lightning_privacy.callbacks.quality.extractors import METRICS
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["InversionAudit"]


class InversionAudit(ResultAudit):
    """Reconstruct a model's inputs from what it computes of them, during and after training.

    Attackers train on ``attack_nonmember`` of the trainer's `MembershipSplit`, which the model never sees, and
    reconstruct victims among its training pictures (``private``) and among pictures that neither has seen
    (``heldout``). Every choice of theirs is made on a part of their own pictures. The model is frozen, its defences go on
    acting. Results go to ``results.jsonl`` as ``<tap>/<victims>/<attack>``, values to the loggers as
    ``attack/inversion/<tap>/<victims>/<attack>/<metric>``, a sheet of reconstructions to ``pictures`` and the loggers.

    Args:
        split: Name of the layer whose output leaves the client (``network.first_part``); no split tap without it.
        taps: Where the attacker listens, of ``split``, ``features``, ``logits``, ``probabilities``; features and logits,
            and the split where it is named, if not given.
        features: Name of a layer for the tap ``features``; the module's ``embedding`` if not given.
        attacks: Names of attacks; if not given, the trained decoder, the white-box optimisation from its output, and
            those that know the run's defences.
        attack_args: Arguments by attack, such as ``{trained_decoder: {max_steps: 4000}}``.
        victims: Pictures attacked of each kind, at least 8; retrieval is one out of so many.
        every_n_epochs: Audit at the end of every so many epochs too.
        at_end: Audit when training ends.
        queries: Times that the attacker may watch the same victim; observations are averaged, which undoes noise that
            is drawn anew.
        ceiling: Also train an autoencoder as the ceiling of the scale ``leak``; takes as long as one decoder.
        distances: Distances between reconstructions and victims as sets, of ``fid``, ``kid``, ``fd_efficientnet_lite0``
            and ``kid_efficientnet_lite0``; they need far more victims than single pictures do.
        grid: Victims on the sheet of reconstructions; 0 for none. It shows training pictures to whoever sees the run.
        seed: Of the attackers, the choice of victims, noise and the bootstrap.
        bootstrap: Resamples behind each 95 % interval.

    Raises:
        InputError: an unknown tap, attack or distance, or a number out of range.
        SplitError: at the start of training, where the datamodule is no `MembershipSplit` or a role is empty.
        MissingProtocolError: at the start of training, where the module lacks what a tap needs.
        NoEffectError: at the start of training, where there is no layer of a given name.
    """

    def __init__(
        self,
        split: str | None = None,
        taps: list[str] | None = None,
        features: str | None = None,
        attacks: list[str] | None = None,
        attack_args: dict[str, dict[str, Any]] | None = None,
        victims: int = 64,  # chosen here: a PSNR's interval is then about 1 dB wide on faces
        every_n_epochs: int | None = None,
        at_end: bool = True,
        queries: int = 1,
        ceiling: bool = True,
        distances: list[str] | None = None,
        grid: int = 8,
        seed: int = 0,
        bootstrap: int = 2000,
    ) -> None:
        super().__init__(every_n_epochs, at_end)
        self.split, self.features = split, features
        self.taps = taps
        wanted = taps if taps is not None else [*(["split"] if split else []), "features", "logits"]
        unknown = [tap for tap in wanted if tap not in get_args(Tap)]
        strange = [name for name in distances or [] if name not in METRICS]
        if unknown or strange or not wanted or len(set(wanted)) < len(wanted):
            raise InputError(
                f"InversionAudit knows no tap {unknown} and no distance {strange}, or was given no tap or one twice "
                f"({wanted}); taps are {', '.join(get_args(Tap))}, distances {', '.join(METRICS)}."
            )
        if victims < FEWEST_VICTIMS or queries < 1 or grid < 0 or bootstrap < 1:
            raise InputError(
                f"InversionAudit needs victims >= {FEWEST_VICTIMS}, queries >= 1, grid >= 0 and bootstrap >= 1, but got "
                f"{victims=}, {queries=}, {grid=}, {bootstrap=}."
            )
        self.attacks, self.attack_args = attacks, attack_args
        build_inversion_attacks([*(attacks or []), *(set(attack_args or {}) - set(attacks or []))], attack_args)
        self.victims, self.queries, self.ceiling, self.distances = victims, queries, ceiling, distances
        self.grid, self.seed, self.bootstrap = grid, seed, bootstrap
        self._layers: dict[Tap, str | None] = {
            tap: {"split": split, "features": features}.get(tap) for tap in get_args(Tap) if tap in wanted
        }

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out now, not after hours, what is missing of the data."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_roles(find_split(trainer, "InversionAudit"), [AUX, *VICTIM_ROLES.values()], "InversionAudit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the taps, which surgery may have made or removed by now."""
        check_taps(pl_module, self._layers)

    def measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, final: bool) -> list[AttackResult]:
        """Run every attack at every tap on both kinds of victims."""
        check_taps(module, self._layers)
        plan = InversionPlan(
            layers=self._layers,
            attacks=lambda: self._chosen(trainer),
            victims=self.victims,
            queries=self.queries,
            ceiling=self.ceiling,
            seed=self.seed,
            bootstrap=self.bootstrap,
            shown=self.grid,
            distances=tuple(self.distances or ()),
            decoder=(self.attack_args or {}).get("trained_decoder", {}),
        )
        defences = tuple(defence.name for defence in defences_of(trainer))
        notes = inversion_attacks_of(defences_of(trainer))[1]
        about = AuditedModel(trainer.global_step, epoch, defences, notes)
        results, sheets = audit_inversion(module, find_split(trainer, "InversionAudit"), plan, about)
        if trainer.is_global_zero and self.grid:
            save_reconstructions(trainer, sheets, epoch)
        return results

    def result_names(self, trainer: L.Trainer, module: L.LightningModule) -> set[str]:
        """Return the names of the results that `audit` would write."""
        # One that asks whether it applies may be silent at a tap, and is not waited for.
        attacks = [*(attack.name for attack in self._chosen(trainer) if not hasattr(attack, "applies")), STRONGEST]
        return {f"{tap}/{kind}/{name}" for tap in self._layers for kind in VICTIM_ROLES for name in attacks}

    def charted(self, results: Sequence[AttackResult]) -> dict[str, float]:
        """Return what the loggers draw: the valid numbers of every attack."""
        return chart_values(results)

    def _chosen(self, trainer: L.Trainer) -> tuple[InversionAttack, ...]:
        """Return fresh attacks: those named, or the default ones, and those that know the run's defences."""
        names = list(self.attacks) if self.attacks is not None else list(DEFAULT_ATTACKS)
        knowing = [a for a in inversion_attacks_of(defences_of(trainer))[0] if a.name not in names]
        # By name where there is one, so that they share the decoder and take the user's arguments.
        names += [attack.name for attack in knowing if attack.name in INVERSION_ATTACKS]
        chosen = build_inversion_attacks(names, self.attack_args)
        return (*chosen, *(attack for attack in knowing if attack.name not in INVERSION_ATTACKS))
