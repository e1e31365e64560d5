"""Defences with one fault each: the check that is meant for it fails, with a sentence that says so."""

import gc
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from lightning_privacy.core import registry
from lightning_privacy.core.defence import Slot
from lightning_privacy.properties import Property
from lightning_privacy.testing.contract import CHECKS, case_of, run_all
from lightning_privacy.testing.dummy_defences import ObjectiveDummy, PostStepDummy
from lightning_privacy.testing.settings import DUMMIES

KEPT = []


class DrawsGlobally(ObjectiveDummy):
    def objective(self, step):
        torch.rand(1)
        return super().objective(step)


class NeverIdle(ObjectiveDummy):
    def objective(self, step):
        return super().objective(step) * (1 + 1e-6)


class ForgetsState(ObjectiveDummy):
    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class PicklesObjects(ObjectiveDummy):
    def state_dict(self):
        return {**super().state_dict(), "slot": self.__class__}


class HalvesState(ObjectiveDummy):
    def state_dict(self):
        return {"w": torch.zeros(1, dtype=torch.bfloat16)}


class MarksModule(ObjectiveDummy):
    def objective(self, step):
        step.module.marked = True
        return super().objective(step)


class KeepsModule(ObjectiveDummy):
    def objective(self, step):
        KEPT.append(step.module)
        return super().objective(step)


class LeaksIntoModel(ObjectiveDummy):
    def objective(self, step):
        self.learner.step(lambda: (self.learner.module(step.loss.view(1, 1)) - 1).square().mean() + 0 * step.loss)
        return super().objective(step).detach() + sum(p.sum() for p in step.module.parameters())


class LeaksIntoLearner(ObjectiveDummy):
    def objective(self, step):
        loss = super().objective(step)
        return loss + self.learner.module(step.loss.view(1, 1)).sum()


class LosesArgument(PostStepDummy):
    def __init__(self, bound: float = 0.05) -> None:
        super().__init__(bound)
        del self.bound

    def after_step(self, trainer, module):
        pass


class ChangesArgument(PostStepDummy):
    def __init__(self, bound: float = 0.05) -> None:
        super().__init__(bound * 2)


class Undocumented(PostStepDummy):
    """Says nothing of its arguments."""


class BreaksWeights(PostStepDummy):
    def after_step(self, trainer, module):
        module.outward.weight.data.fill_(float("nan"))


class TouchesInValidation(PostStepDummy):
    def on_validation_end(self, trainer, pl_module):
        pl_module.outward.weight.data.add_(1)


class StartsAnew(ObjectiveDummy):
    def on_train_start(self, trainer, pl_module):
        self.prepare(trainer, pl_module)


class CountsTwice(ObjectiveDummy):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed += 1


class NoRemedy(PostStepDummy):
    remedies: ClassVar[dict[Property, str]] = {Property.PLAIN_GRADIENTS: "No."}


FAULTS = [
    (DrawsGlobally, "zero_strength", "draws from the global random state"),
    (NeverIdle, "zero_strength", "is not undefended training"),
    (ForgetsState, "resume", "is not the uninterrupted run"),
    (PicklesObjects, "checkpoint", "does not load with weights_only=True"),
    (HalvesState, "bf16", "half precision"),
    (MarksModule, "leaves_module_clean", r"leaves \['marked'\]"),
    (KeepsModule, "frees_memory", "keeps the module alive"),
    (LeaksIntoModel, "gradients_stay_apart", "changed the model's weights or gradients"),
    (LeaksIntoLearner, "gradients_stay_apart", "reached what is trained beside it"),
    (LosesArgument, "keeps_arguments", r"does not keep \['bound'\]"),
    (ChangesArgument, "arguments_round_trip", "cannot be rebuilt"),
    (Undocumented, "keeps_arguments", r"does not explain \['bound'\]"),
    (BreaksWeights, "trains", "not finite"),
    (TouchesInValidation, "second_fit", "`validate` changed"),
    (StartsAnew, "second_fit", "started anew"),
    (CountsTwice, "counts_steps", "global_step is"),
    (NoRemedy, "requirements", "proposes no remedy"),
]


@pytest.mark.parametrize(("defence", "check", "sentence"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_fault_is_found(defence, check, sentence, tmp_path):
    case = replace(DUMMIES[defence.name], defence=defence)
    with pytest.raises(AssertionError, match=sentence):
        CHECKS[check](case, tmp_path)
    KEPT.clear()
    gc.collect()


def test_registered_defence_without_settings_card_or_fragment_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.DEFENCES, "_targets", {**registry.DEFENCES._targets, "post_step_dummy": PostStepDummy})
    with pytest.raises(AssertionError, match="has no entry in `lightning_privacy.testing.settings.DEFENCES`"):
        case_of("post_step_dummy")
    case = DUMMIES["post_step_dummy"]
    with pytest.raises(AssertionError, match="has no fragment"):
        CHECKS["fragments"](case, tmp_path)
    monkeypatch.setattr("inspect.getfile", lambda cls: str(tmp_path / "callback.py"))
    with pytest.raises(AssertionError, match="has no method card"):
        CHECKS["card"](case, tmp_path)
    (tmp_path / "README.md").write_text("# Dummy\n\n## Use it\n")
    with pytest.raises(AssertionError, match="has the headings"):
        CHECKS["card"](case, tmp_path)


def test_run_all_runs_every_check(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "lightning_privacy.testing.contract.CHECKS", {k: lambda case, folder, k=k: ran.append(k) for k in CHECKS}
    )
    run_all(DUMMIES["surgery_dummy"], tmp_path)
    assert ran == list(CHECKS)
    assert Slot.SURGERY in DUMMIES["surgery_dummy"].defence.slots
