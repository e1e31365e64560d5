"""The contract suite: what every defence must do on any module. Call it for a defence of your own as well.

Each check takes a `DefenceCase` and an empty folder, and raises an AssertionError with a sentence if the defence fails.

Example:
    >>> import tempfile
    >>> from lightning_privacy.testing.settings import DUMMIES
    >>> check_keeps_arguments(DUMMIES["gradient_dummy"], tempfile.mkdtemp())
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_privacy.core.defence import Slot
from lightning_privacy.core.manifest_record import KEY
from lightning_privacy.errors import DefenceConflictError
from lightning_privacy.testing.contract_declarations import (
    check_arguments_round_trip,
    check_card,
    check_fragments,
    check_keeps_arguments,
    check_requirements,
)
from lightning_privacy.testing.contract_side_learners import check_gradients_stay_apart
from lightning_privacy.testing.expect import expect
from lightning_privacy.testing.fitting import Fitted, compare, fit, quiet, state_of
from lightning_privacy.testing.settings import DEFENCES, DefenceCase

if TYPE_CHECKING:
    from lightning_privacy.testing.ranks import RankPool

__all__ = ["CHECKS", "case_of", "run_all"]

BATCH = 8
Folder = Path | str


def _fit(case: DefenceCase, folder: Folder, defence: Any = None, *more: L.Callback, **options: Any) -> Fitted:
    callbacks = [*([] if defence is None else [defence]), *more]
    return fit(folder, case.module(), case.data(BATCH), callbacks, **options)


def _load(case: DefenceCase, path: Folder) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as refusal:
        raise AssertionError(
            f"A checkpoint of `{case.name}` does not load with weights_only=True: its state holds more than tensors and "
            f"plain values ({str(refusal).splitlines()[0]})."
        ) from refusal


def check_trains(case: DefenceCase, folder: Folder) -> None:
    """It trains a module that has nothing but the protocols it asks for, and what is trained moves and stays finite."""
    before = {k: v.clone() for k, v in case.module().state_dict().items()}
    after = _fit(case, folder, case.build()).weights
    moved = [k for k in before if k in after and not torch.equal(before[k], after[k])]
    expect(bool(moved) or Slot.SURGERY in case.defence.slots, f"`{case.name}`: no weight moved in an epoch.")
    broken = [k for k, v in after.items() if v.is_floating_point() and not v.isfinite().all()]
    expect(not broken, f"`{case.name}`: {broken} are not finite after an epoch.")


def check_zero_strength(case: DefenceCase, folder: Folder) -> None:
    """With its strength at zero, everything else still running, weights and random states are the undefended run's."""
    if case.zero_kwargs is None:
        return
    undefended = _fit(case, folder)
    idle = _fit(case, folder, case.build(**case.zero_kwargs))
    differ = compare(idle.weights, undefended.weights, "weights")
    expect(not differ, f"`{case.name}` at {dict(case.zero_kwargs)} is not undefended training: {differ[:3]}.")
    differ = compare(idle.random_state, undefended.random_state, "random state")
    expect(
        not differ, f"`{case.name}` draws from the global random state: a user's run changes with it ({differ[:1]})."
    )


def check_resume(case: DefenceCase, folder: Folder, *, batch_size: int = BATCH, **options: Any) -> None:
    """Interrupted and resumed equals uninterrupted: weights, optimizers, and the state of every callback."""
    every: dict[str, Any] = {"every_n_train_steps": 1} if case.exact_in_epoch else {"every_n_epochs": 1}
    checkpoints = Path(folder, "checkpoints")

    def run(name: str, **more: Any) -> tuple[int, dict[str, Any]]:
        saver = ModelCheckpoint(checkpoints, f"{name}-{{step}}", save_top_k=-1, **every)
        both = {"max_epochs": 2, "enable_checkpointing": True, **options, **more}
        fitted = fit(folder, case.module(), case.data(batch_size), [case.build(), saver], **both)
        last = fitted.trainer.global_step
        return last, _load(case, checkpoints / f"{name}-step={last}.ckpt")

    last, through = run("through")
    half = last // 2 + 1 if case.exact_in_epoch else last // 2
    middle = checkpoints / f"through-step={half}.ckpt"
    expect(middle.is_file(), f"`{case.name}`: no checkpoint was written at step {half}.")
    _, resumed = run("resumed", ckpt_path=middle, seed=1)
    differ = compare(state_of(resumed), state_of(through))
    expect(not differ, f"`{case.name}` resumed at step {half} of {last} is not the uninterrupted run: {differ[:5]}.")


def check_checkpoint(case: DefenceCase, folder: Folder) -> None:
    """Its checkpoints, whole and weights-only, load with ``weights_only=True`` and carry the manifest."""
    for weights_only in (False, True):
        saver = ModelCheckpoint(Path(folder, str(weights_only)), "x", save_weights_only=weights_only)
        fitted = _fit(case, folder, case.build(), saver, enable_checkpointing=True)
        saved = _load(case, saver.best_model_path)
        expect(
            case.name in saved.get(KEY, {}).get("defences", {}), f"`{case.name}` is not in the checkpoint's manifest."
        )
        if not weights_only:
            after = Path(folder, "after.ckpt")
            fitted.trainer.save_checkpoint(after)
            expect(KEY in _load(case, after), f"`{case.name}`: a checkpoint saved after `fit` has no manifest.")


def check_bf16(case: DefenceCase, folder: Folder) -> None:
    """It trains in bf16-mixed precision, with what it trains beside the model in fp32."""
    defence = case.build()
    fitted = _fit(case, folder, defence, precision="bf16-mixed")
    broken = [k for k, v in fitted.weights.items() if v.is_floating_point() and not v.isfinite().all()]
    expect(not broken, f"`{case.name}` under bf16-mixed: {broken} are not finite.")
    halves = [place for place, t in _tensors(defence.state_dict()) if t.dtype in (torch.bfloat16, torch.float16)]
    expect(not halves, f"`{case.name}` keeps state in half precision: {halves}.")


def check_counts_steps(case: DefenceCase, folder: Folder) -> None:
    """``trainer.global_step`` is the number of the model's optimizer steps, whatever else is trained."""

    class Count(L.Callback):
        def __init__(self) -> None:
            self.batches = 0

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            self.batches += 1

    count = Count()
    fitted = _fit(case, folder, case.build(), count, max_epochs=2)
    expect(
        fitted.trainer.global_step == count.batches,
        f"`{case.name}`: global_step is {fitted.trainer.global_step} after {count.batches} steps.",
    )


def check_leaves_module_clean(case: DefenceCase, folder: Folder) -> None:
    """After ``fit``, and after an exception in it, the module has its own methods, and copies and pickles."""

    class Fail(L.Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("on purpose")

    usual = set(_fit(case, folder).module.__dict__)
    ran = _fit(case, folder, case.build()).module
    failed = case.module()
    try:
        fit(folder, failed, case.data(BATCH), [case.build(), Fail()])
        expect(False, "The run that should fail did not.")
    except ZeroDivisionError:
        pass
    for how, module in (("fit", ran), ("an exception", failed)):
        left = sorted(set(module.__dict__) - usual)
        expect(not left, f"`{case.name}` leaves {left} on the module after {how}.")
        for method in ("training_step", "configure_model", "on_save_checkpoint", "on_load_checkpoint"):
            same = getattr(getattr(module, method), "__func__", None) is getattr(type(module), method)
            expect(same, f"`{case.name}` leaves `{method}` of the module replaced after {how}.")
        module.trainer = None
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            differ = compare(dict(copied.state_dict()), dict(module.state_dict()))
            expect(not differ, f"`{case.name}`: a copy of the module after {how} differs: {differ[:3]}.")


def check_frees_memory(case: DefenceCase, folder: Folder) -> None:
    """Nothing outside the trainer keeps the module alive: many runs fit into one process."""
    fitted = _fit(case, folder, case.build())
    watch = weakref.ref(fitted.module)
    del fitted
    gc.collect()
    expect(watch() is None, f"`{case.name}` keeps the module alive after trainer, module and defence are gone.")


def check_trainer_options(case: DefenceCase, folder: Folder) -> None:
    """It works with ``fast_dev_run``, ``limit_train_batches`` and accumulation (or says why not)."""
    expect(
        _fit(case, folder, case.build(), fast_dev_run=True).trainer.global_step == 1, "fast_dev_run took other steps."
    )
    limited = _fit(case, folder, case.build(), limit_train_batches=2)
    expect(limited.trainer.global_step == 2, f"`{case.name}` with limit_train_batches=2 took other steps.")
    try:
        accumulated = _fit(case, folder, case.build(), limit_train_batches=4, accumulate_grad_batches=2)
    except DefenceConflictError as conflict:
        expect(case.name in str(conflict), f"The conflict with accumulation does not name `{case.name}`: {conflict}")
    else:
        expect(accumulated.trainer.global_step == 2, f"`{case.name}` under accumulation took other steps.")


def check_second_fit(case: DefenceCase, folder: Folder) -> None:
    """A second ``fit`` of the same trainer goes on; validating and testing in between changes nothing."""
    defence, module, data = case.build(), case.module(), case.data(BATCH)
    fitted = fit(folder, module, data, [defence])
    steps, before, state = fitted.trainer.global_step, fitted.weights, copy.deepcopy(defence.state_dict())
    with quiet():
        fitted.trainer.validate(module, data, verbose=False)
    differ = compare(fitted.weights, before) + compare(defence.state_dict(), state)
    expect(not differ, f"`{case.name}`: `validate` changed {differ[:3]}.")
    fitted.trainer.fit_loop.max_epochs = 2
    with quiet():
        fitted.trainer.fit(module, data)
    expect(fitted.trainer.global_step == 2 * steps, f"`{case.name}`: the second `fit` took other steps.")
    after = dict(_numbers(defence.state_dict()))
    fell = [k for k, n in _numbers(state) if k.endswith("steps") and after.get(k, 0) <= n]
    expect(not fell, f"`{case.name}` started anew in the second `fit` of the same trainer: {fell} did not grow.")


def _tensors(nest: Any, where: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(nest, torch.Tensor):
        return [(where, nest)]
    items = nest.items() if isinstance(nest, dict) else enumerate(nest) if isinstance(nest, list | tuple) else ()
    return [found for k, v in items for found in _tensors(v, f"{where}/{k}")]


def _numbers(nest: Any, where: str = "") -> list[tuple[str, int]]:
    if isinstance(nest, int):
        return [(where, nest)]
    return [found for k, v in nest.items() for found in _numbers(v, f"{where}/{k}")] if isinstance(nest, dict) else []


CHECKS: dict[str, Callable[[DefenceCase, Folder], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_trains,
        check_zero_strength,
        check_resume,
        check_checkpoint,
        check_bf16,
        check_counts_steps,
        check_leaves_module_clean,
        check_frees_memory,
        check_gradients_stay_apart,
        check_requirements,
        check_keeps_arguments,
        check_arguments_round_trip,
        check_card,
        check_fragments,
        check_trainer_options,
        check_second_fit,
    )
}
"""All checks of one process, by name; the card and the fragments concern registered defences alone."""


def case_of(name: str) -> DefenceCase:
    """Return the case of a registered defence.

    Args:
        name: Its registered name.
    """
    expect(name in DEFENCES, f"The defence `{name}` has no entry in `lightning_privacy.testing.settings.DEFENCES`.")
    return DEFENCES[name]()


def run_all(case: DefenceCase | str, folder: Folder, pool: "RankPool | None" = None) -> None:
    """Run every check.

    Args:
        case: The case, or a registered name.
        folder: An empty folder.
        pool: Two ranks; None leaves out the checks on ranks.

    Raises:
        AssertionError: a check failed; it says which and how.
    """
    from lightning_privacy.testing.contract_ranks import check_ranks

    found = case_of(case) if isinstance(case, str) else case
    for name, check in CHECKS.items():
        check(found, Path(folder, name))
    if pool is not None:
        check_ranks(found, Path(folder, "ranks"), pool)
