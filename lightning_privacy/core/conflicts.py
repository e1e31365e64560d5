"""The order of defences, and every conflict among them and with the trainer, as pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.errors import DefenceConflictError, UnsupportedStrategyError
from lightning_privacy.properties import Property

__all__ = ["Conflict", "Environment", "find_conflicts", "order_defences", "raise_conflicts"]

_SHARDED = ("fsdp", "deepspeed", "modelparallel", "model_parallel", "xla_fsdp")
_SPAWNED = ("spawn", "fork", "notebook")


@dataclass(frozen=True)
class Conflict:
    """A property that one party requires and another breaks.

    Args:
        needs: Name of the defence that requires the property.
        breaker: Name of the defence, or words for the trainer's setting, that breaks it.
        broken: The property.
        remedy: What the user can do.
        strategy: Whether the breaker is the trainer's strategy or optimizer.
    """

    needs: str
    breaker: str
    broken: Property
    remedy: str
    strategy: bool = False

    def sentence(self) -> str:
        """Return the conflict as text."""
        return f"`{self.needs}` requires {self.broken.name} ({self.broken.value}), which {self.breaker} breaks. {self.remedy}"


@dataclass(frozen=True)
class Environment:
    """What the trainer does, as far as defences care.

    Args:
        strategy: The strategy's name or class name.
        accumulate_grad_batches: Training steps an optimizer step.
        gradient_clip_val: The trainer's own clipping, None for none.
        automatic_optimization: Whether Lightning runs backward and step.
        optimizers: Class names of the optimizers, once known.
        module_breaks: Properties that the module itself breaks, with the words that name the culprit.
    """

    strategy: str = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | int | None = None
    automatic_optimization: bool = True
    optimizers: tuple[str, ...] = ()
    module_breaks: Mapping[Property, str] = field(default_factory=dict)

    def breaks(self) -> dict[Property, tuple[str, str, bool]]:
        """Return for each broken property: who breaks it, the remedy, whether it is the strategy or optimizer."""
        out: dict[Property, tuple[str, str, bool]] = {}
        name = self.strategy.lower()
        if any(word in name for word in _SHARDED):
            out[Property.UNSHARDED] = (f"strategy `{self.strategy}`", "Use `strategy: ddp`.", True)
        if any(word in name for word in _SPAWNED):
            remedy = "Use `strategy: ddp`, or start the ranks with torchrun or srun."
            out[Property.LAUNCHER_KEEPS_MODULE] = (f"strategy `{self.strategy}`", remedy, True)
        if "LBFGS" in self.optimizers:
            out[Property.ONE_STEP_PER_CLOSURE] = ("optimizer `LBFGS`", "Use AdamW, Adam or SGD.", True)
        if not self.automatic_optimization:
            remedy = (
                "Set `self.automatic_optimization = True`; the defence works on the loss that `training_step` returns."
            )
            out[Property.AUTOMATIC_OPTIMIZATION] = ("manual optimization in the module", remedy, False)
        if self.accumulate_grad_batches > 1:
            remedy = "Set `accumulate_grad_batches: 1` and enlarge the batch."
            out[Property.NO_ACCUMULATION] = (f"`accumulate_grad_batches={self.accumulate_grad_batches}`", remedy, False)
        if self.gradient_clip_val is not None:
            remedy = "Remove `gradient_clip_val` from the trainer."
            out[Property.TRAINER_CLIPPING_OFF] = (f"`gradient_clip_val={self.gradient_clip_val}`", remedy, False)
        for prop, culprit in self.module_breaks.items():
            out[prop] = (culprit, "Change the module, or leave the defence out.", False)
        return out


def order_defences(defences: Sequence[Defence]) -> list[Defence]:
    """Order defences by their first slot, then by `Defence.after`, then by name.

    Raises:
        DefenceConflictError: two defences share a name, or `after` runs in a circle.
    """
    names = [d.name for d in defences]
    doubles = sorted({n for n in names if names.count(n) > 1})
    if doubles:
        raise DefenceConflictError(
            f"The defence `{doubles[0]}` was given {names.count(doubles[0])} times; keep one of them."
        )
    waiting = sorted(defences, key=lambda d: (min(d.slots, default=Slot.CHECKPOINT), d.name))
    done: list[Defence] = []
    while waiting:
        ready = next((d for d in waiting if not d.after & {w.name for w in waiting if w is not d}), None)
        if ready is None:
            circle = ", ".join(f"`{d.name}` after {sorted(d.after)}" for d in waiting)
            raise DefenceConflictError(f"The order of defences runs in a circle: {circle}. Leave one of them out.")
        waiting.remove(ready)
        done.append(ready)
    return done


def find_conflicts(defences: Sequence[Defence], environment: Environment) -> list[Conflict]:
    """Return every requirement that another defence or the environment breaks."""
    outer = environment.breaks()
    found: list[Conflict] = []
    for needs in defences:
        for prop in sorted(needs.requires, key=lambda p: p.name):
            own = needs.remedies.get(prop)
            if prop in outer:
                breaker, remedy, strategy = outer[prop]
                found.append(Conflict(needs.name, breaker, prop, own or remedy, strategy))
            for other in defences:
                if other is not needs and prop in other.breaks:
                    remedy = own or other.remedies.get(prop) or f"Use only one of `{needs.name}` and `{other.name}`."
                    found.append(Conflict(needs.name, f"`{other.name}`", prop, remedy))
    return found


def raise_conflicts(conflicts: Sequence[Conflict]) -> None:
    """Raise one error that lists all conflicts; do nothing if there is none.

    Raises:
        UnsupportedStrategyError: the strategy or optimizer is to blame for all of them.
        DefenceConflictError: otherwise.
    """
    if not conflicts:
        return
    kind = UnsupportedStrategyError if all(c.strategy for c in conflicts) else DefenceConflictError
    raise kind("\n".join(c.sentence() for c in conflicts))
