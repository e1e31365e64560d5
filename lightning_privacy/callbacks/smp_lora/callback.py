"""The SMP-LoRA defence: says when the mathematics of `functional` is applied in a training run."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.smp_lora import functional as math
from lightning_privacy.callbacks.smp_lora.auxiliary import AuxiliaryBatches
from lightning_privacy.callbacks.smp_lora.observer import ModelObserver
from lightning_privacy.callbacks.smp_lora.proxy import ProxyInput, ProxyMLP, check_features
from lightning_privacy.callbacks.smp_lora.reader import FeatureReader
from lightning_privacy.callbacks.smp_lora.replay import Replay
from lightning_privacy.core.defence import Defence, Slot, Step
from lightning_privacy.core.import_path import import_object
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.ranks import gather_rows, mean_over_ranks
from lightning_privacy.core.side_learner import SideLearner
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["SMPLoRA"]


class SMPLoRA(Defence):
    """Train against a proxy membership attacker (MP-LoRA and SMP-LoRA, arXiv 2402.11989).

    A small network, the proxy, learns to tell members from non-members by the model's errors; the model minimises its
    loss together with the proxy's gain G: ``L / (1 - strength G + delta)`` (``smp``) or ``L + strength G`` (``mp``).
    Needs `MembershipSplit` around the data, and a module with ``per_sample_error`` (or ``error_fn``). The defaults are
    this project's recommendation, not the paper's setting: for that see `paper` and `released`, and the method card.

    Args:
        strength: lambda, the weight of the gain, at least 0; 0 trains the undefended model.
        mode: ``smp`` (equation 10, the ratio) or ``mp`` (equation 6, the sum).
        delta: Added to the denominator of ``smp``, at least 0.
        strength_end: Weight at the last step; the weight moves from ``strength`` geometrically. None keeps it constant.
        gain: ``two_sided`` (equation 5: members and non-members) or ``members`` (as released).
        proxy: What the proxy reads: ``calibrated``, ``error_map``, ``pooled_map``, ``scalar`` or ``multi_t``.
        replay: Steps whose features the proxy is fitted on; 0 for the current step alone.
        shared_forward: Read the gain from the errors of the training step itself instead of an independent draw.
        order: ``attack_first`` (algorithm 1) or ``adapt_first`` (released code).
        ratio: ``batch`` (ratio of batch means) or ``per_sample`` (mean of ratios: separable over members).
        interval: Steps from one gain to the next, whose gradient counts that many times so that ``strength`` means the
            same; between, the loss alone is minimised, over the last denominator.
        aux_batch_size: Auxiliary non-members a step and process.
        aux_views: Mirrored, turned and cropped versions of each auxiliary non-member to train against; 0 for the record
            itself, which ``two_sided`` then memorises.
        bank: Passes over the auxiliary non-members after which the same views and draws come again, so that their
            reference errors are known; 0 for draws that never come again. Too few are memorised.
        draws: Draws a record for ``multi_t``.
        hidden: Widths of the proxy's hidden layers.
        dropout: Share of the proxy's hidden units dropped while it is fitted.
        lr: Learning rate of the proxy's Adam.
        weight_decay: L2 penalty of the proxy's Adam.
        proxy_steps: Steps of the proxy a training step.
        error_fn: Import path of, or, ``error_fn(module, batch, draw)`` in place of ``per_sample_error``.
        draw_fn: Import path of, or, ``draw_fn(module, batch, generator)`` in place of ``sample_draw``.
        seed: Of the proxy and of all auxiliary draws.

    Raises:
        InputError: an argument is out of range, or two contradict each other.

    Example:
        >>> SMPLoRA.paper().strength, SMPLoRA.released().gain
        (0.05, 'members')
    """

    name: ClassVar[str] = "smp_lora"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.OBJECTIVE, Slot.POST_STEP})
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("lightning_privacy.callbacks.smp_lora.attack:ProxyAwareAttack",)
    remedies: ClassVar[Mapping[Property, str]] = {
        Property.PER_SAMPLE_SEPARABLE: "Use `ratio: per_sample`, under which one member changes no other member's term.",
    }
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )

    def __init__(
        self,
        strength: float | int = 4.0,  # chosen here on seeds 100 and 101, see card
        mode: Literal["smp", "mp"] = "smp",
        delta: float | int = 1e-5,  # paper, equation 10
        strength_end: float | int | None = None,
        gain: Literal["two_sided", "members"] = "two_sided",
        proxy: ProxyInput = "calibrated",
        replay: int = 30,
        shared_forward: bool = True,
        order: Literal["attack_first", "adapt_first"] = "attack_first",
        ratio: Literal["batch", "per_sample"] = "batch",
        interval: int = 1,
        aux_batch_size: int = 8,
        aux_views: int = 16,
        bank: int = 64,
        draws: int = 4,
        hidden: tuple[int, ...] = (32, 32),
        dropout: float | int = 0.0,
        lr: float | int = 3e-3,
        weight_decay: float | int = 0.0,
        proxy_steps: int = 1,
        error_fn: str | Any | None = None,
        draw_fn: str | Any | None = None,
        seed: int = 0,
    ) -> None:
        for argument, value in {"strength": strength, "delta": delta, "strength_end": strength_end or 0.0}.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"SMPLoRA: `{argument}` is {value}; it must be a finite number, at least 0.")
        if aux_batch_size < 1:
            raise InputError(f"SMPLoRA: `aux_batch_size` is {aux_batch_size}; the proxy needs at least one non-member.")
        if interval < 1:
            raise InputError(f"SMPLoRA: `interval` is {interval}; it must be at least 1.")
        if aux_views < 0 or bank < 0:
            raise InputError(f"SMPLoRA: `aux_views` is {aux_views} and `bank` is {bank}; both must be at least 0.")
        if strength_end is not None and (strength == 0 or strength_end == 0):
            raise InputError("SMPLoRA: a geometric schedule needs `strength` and `strength_end` above 0.")
        super().__init__()
        self.strength, self.mode, self.delta, self.strength_end = strength, mode, delta, strength_end
        self.gain, self.replay = gain, replay
        self.proxy: ProxyInput = proxy
        self.shared_forward, self.order, self.ratio = shared_forward, order, ratio
        self.interval = interval
        self.aux_batch_size, self.aux_views, self.bank, self.draws = aux_batch_size, aux_views, bank, draws
        self.hidden, self.dropout, self.lr, self.weight_decay = tuple(hidden), dropout, lr, weight_decay
        self.proxy_steps, self.error_fn, self.draw_fn, self.seed = proxy_steps, error_fn, draw_fn, seed
        broken = {Property.SIDE_STATE_PRIVATE}  # the proxy is fitted on members
        if ratio == "batch" and mode == "smp":
            broken.add(Property.PER_SAMPLE_SEPARABLE)
        self.breaks = frozenset(broken)
        self._learner: SideLearner | None = None
        self._restored: dict[str, Any] | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self._auxiliary: Any = None
        self._steps, self._denominator = 0, torch.ones(())

    @classmethod
    def paper(cls, **overrides: Any) -> "SMPLoRA":
        """Return the setting of the paper's section 4 and appendix E (rank 64 and the text encoder belong to the model)."""
        return cls(**{**_PAPER, **overrides})

    @classmethod
    def released(cls, **overrides: Any) -> "SMPLoRA":
        """Return the setting of the released training scripts: lambda 1, adaptation before attack."""
        return cls(**{**_PAPER, "strength": 1.0, "order": "adapt_first", **overrides})

    @classmethod
    def fast(cls, **overrides: Any) -> "SMPLoRA":
        """Return the defaults with a gain at every second step: faster, and weaker in privacy and utility (see card)."""
        return cls(**{"strength": 2.0, "interval": 2, "aux_batch_size": 4, **overrides})

    # --- set-up ------------------------------------------------------------------------------------------------

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Build the observer and open the auxiliary streams; the proxy is built when it first sees an error's shape."""
        functions = import_object(self.error_fn), import_object(self.draw_fn)
        observer = ModelObserver(module, *functions, derive_seed(self.seed, "smp_lora"))
        self._auxiliary = AuxiliaryBatches(self, trainer)
        self._reader = FeatureReader(observer, self._auxiliary, self.proxy, self.draws)
        self._learner = None
        self._steps, self._denominator = 0, torch.ones(())

    def _build(self, features: Float[Tensor, "n features"]) -> SideLearner:
        device = features.device
        learner = SideLearner(
            lambda: ProxyMLP(features.shape[1], self.hidden, self.dropout),
            lambda parameters: torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay),
            device,
            derive_seed(self.seed, "proxy"),
        )
        self._replay = Replay(self.replay)
        if self._restored is not None:
            check_features(self._restored["proxy"]["module"]["hidden.0.weight"].shape[1], features.shape[1])
            learner.load_state_dict(self._restored["proxy"])
            self._replay.load_state_dict(self._restored["replay"], device)
            self._restored = None
        return learner

    # --- the step ----------------------------------------------------------------------------------------------

    def objective(self, step: Step) -> Tensor:
        """Return ``L / (1 - lambda G + delta)`` or ``L + lambda G``."""
        device_type = step.loss.device.type
        indices = self._auxiliary.member_indices(step)
        self._steps += 1
        if (self._steps - 1) % self.interval:
            # On the scale of the steps with a gain: Adam compares the sizes of gradients.
            return step.loss / self._denominator.to(step.loss) if self.mode == "smp" else step.loss
        error, draw = (step.shared_error, step.shared_draw) if self.shared_forward else (None, None)
        mine = self._reader.observe(step.module, step.batch, error, draw)
        auxiliary, place = self._auxiliary.nonmembers()
        with torch.set_grad_enabled(self.gain == "two_sided"):
            others = self._reader.observe(step.module, auxiliary, place=place)
        members, nonmembers = self._reader.features(step.module, mine, others)
        with torch.autocast(device_type, enabled=False):
            if self._learner is None:
                self._learner = self._build(members)
            fit_members, fit_nonmembers = self._fit_features(step, members, indices, nonmembers)
            if self.order == "attack_first":
                self._fit(fit_members, fit_nonmembers)
            strength = self._strength_now(step.trainer)
            loss, gain = self._combine(step, members, nonmembers, strength)
            if self.order == "adapt_first":
                self._pending = (fit_members, fit_nonmembers)
        self._log(step, gain, strength)
        return loss

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fit the proxy after the model under ``adapt_first``: its weights are in the step's graph until then."""
        if self._pending is not None:
            self._fit(*self._pending)
            self._pending = None

    def _fit_features(self, step: Step, members: Tensor, indices: Tensor, nonmembers: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the proxy may be fitted on: auxiliary members only, of all ranks."""
        if self.shared_forward:
            mine = members.detach()[self._auxiliary.is_aux_member(indices)]
        else:
            with torch.no_grad():
                seen = self._reader.observe(step.module, self._auxiliary.members())
                mine = self._reader.features(step.module, seen)[0]
        return gather_rows(mine), gather_rows(nonmembers.detach())

    def _fit(self, members: Tensor, nonmembers: Tensor) -> None:
        learner = self._learner
        if learner is None:
            return
        self._replay.add(members, nonmembers)
        old_members, old_nonmembers = self._replay.all()
        if not len(old_members):  # no auxiliary member has been in a batch yet
            return
        for _ in range(self.proxy_steps):
            self._proxy_loss = learner.step(
                lambda: math.proxy_loss(
                    learner.module(old_members, learner.generator), learner.module(old_nonmembers, learner.generator)
                )
            )

    def _combine(self, step: Step, members: Tensor, nonmembers: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        learner = self._learner
        if learner is None:
            raise RuntimeError("The proxy is built before the objective.")
        with learner.frozen() as h:
            logits = math.with_gradient_times(h(members), self.interval)
            others = math.with_gradient_times(h(nonmembers), self.interval) if self.gain == "two_sided" else None
        gain = math.batch_gain(logits, others)
        self._seen = (logits.detach(), h(nonmembers.detach()).detach())
        if self.mode == "mp":
            return math.mp_objective(step.loss, gain, strength), gain
        means = mean_over_ranks(torch.stack([step.loss.detach().float(), gain.detach()]))
        self._denominator = math.smp_denominator(means[1], strength, self.delta)
        if self.ratio == "per_sample":
            terms = step.module.per_sample_loss(step.batch, step.shared_draw)  # pyright: ignore[reportCallIssue]
            ratios = math.smp_objective(terms, math.per_sample_gain(logits, others), strength, self.delta)
            return ratios.mean(), gain
        return math.smp_objective(
            step.loss, gain, strength, self.delta, global_loss=means[0], global_gain=means[1]
        ), gain

    def _strength_now(self, trainer: L.Trainer) -> float:
        if self.strength_end is None:
            return self.strength
        done = min(1.0, trainer.global_step / max(1, trainer.estimated_stepping_batches - 1))
        return self.strength * (self.strength_end / self.strength) ** done

    def _log(self, step: Step, gain: Tensor, strength: float) -> None:
        members, nonmembers = self._seen
        accuracy = ((members > 0).float().mean() + (nonmembers <= 0).float().mean()) / 2
        values = {
            "gain": gain.detach(),
            "proxy_accuracy": accuracy,
            "denominator": math.smp_denominator(gain.detach(), strength, self.delta),
            "strength": strength,
        }
        step.module.log_dict({f"defence/{self.name}/{k}": v for k, v in values.items()}, on_step=True, on_epoch=False)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the proxy, its optimizer, its evidence and the position of the streams."""
        place = {"steps": self._steps, "denominator": self._denominator.cpu()}
        if self._learner is None:  # not built since the run was resumed: what was loaded still holds
            return {} if self._restored is None else {**self._restored, **place}
        return {
            **place,
            "proxy": self._learner.state_dict(),
            "replay": self._replay.state_dict(),
            "auxiliary": self._auxiliary.state_dict(),
            "references": self._reader.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the proxy is built, which is when the first error's shape is known."""
        if state_dict:
            self._restored = state_dict
            self._steps, self._denominator = state_dict["steps"], state_dict["denominator"]
            if self._auxiliary is not None:  # Lightning restores callbacks for validation and tests as well
                self._auxiliary.load_state_dict(state_dict["auxiliary"])
                self._reader.load_state_dict(state_dict["references"])


_PAPER: dict[str, Any] = {
    "strength": 0.05,  # table 5
    "delta": 1e-5,  # equation 10
    "gain": "members",  # equation 6: the model's gain is over the members
    "proxy": "error_map",  # released code
    "replay": 0,
    "shared_forward": False,
    "order": "attack_first",  # algorithm 1
    "interval": 1,
    "aux_batch_size": 1,
    "aux_views": 0,
    "bank": 0,
    "hidden": (512, 256),
    "dropout": 0.5,  # released code
    "lr": 1e-5,  # table 5
    "weight_decay": 1e-4,  # released code
}
