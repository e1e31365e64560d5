"""The interception: what reaches the user's module, what is given back, and what other callbacks see of it."""

import copy
import pickle
from typing import ClassVar

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from torch import nn
from torch.nn.functional import mse_loss

from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.core.manifest_record import KEY
from lightning_privacy.errors import DefenceConflictError, ManifestError, NoEffectError, UnsupportedStrategyError
from lightning_privacy.testing.dummy_defences import (
    GradientDummy,
    ObjectiveDummy,
    PostStepDummy,
    SurgeryDummy,
)
from lightning_privacy.testing.fitting import compare, fit, quiet, trainer
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_modules import PlainRegressor, ProtocolRegressor

METHODS = ("training_step", "configure_model", "on_save_checkpoint", "on_load_checkpoint")


class AddOne(Defence):
    """Adds a constant to the loss, and keeps what it was shown."""

    name: ClassVar[str] = "add_one"
    slots = frozenset({Slot.OBJECTIVE})

    def __init__(self):
        super().__init__()
        self.steps = []

    def objective(self, step):
        self.steps.append((step.batch_idx, step.shared_error is not None, step.loss.item()))
        return step.loss + 1


class Losses(L.Callback):
    def __init__(self):
        self.losses, self.outputs = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.outputs.append(outputs)


def _clean(module):
    return not [m for m in METHODS if m in module.__dict__]


# --- the step -----------------------------------------------------------------------------------------------------


def test_objective_sees_the_step_and_its_loss_is_trained(tmp_path):
    defence, losses = AddOne(), Losses()
    fit(tmp_path, PlainRegressor(), plain_images(), [defence, losses])
    assert [i for i, _, _ in defence.steps] == [0, 1, 2, 3]
    assert losses.losses == pytest.approx([loss + 1 for _, _, loss in defence.steps])


def test_dict_outputs_travel_on_without_their_graph(tmp_path):
    defence, losses = AddOne(), Losses()
    fit(tmp_path, ProtocolRegressor(), plain_images(), [defence, losses])
    assert all(shared for _, shared, _ in defence.steps)
    assert set(losses.outputs[0]) == {"loss", "per_sample_error", "draw"}
    assert not losses.outputs[0]["per_sample_error"].requires_grad


def test_step_without_batch_index_gets_none(tmp_path):
    class OnlyBatch(PlainRegressor):
        def training_step(self, batch):
            return mse_loss(*self.predict_lower(batch))

    defended = fit(tmp_path, OnlyBatch(), plain_images(), [ObjectiveDummy(0.0)])
    assert not compare(defended.weights, fit(tmp_path, PlainRegressor(), plain_images()).weights)


def test_step_with_other_names_gets_both(tmp_path):
    class Other(PlainRegressor):
        def training_step(self, x, i):
            assert isinstance(i, int)
            return mse_loss(*self.predict_lower(x))

    defence = AddOne()
    fit(tmp_path, Other(), plain_images(), [defence])
    assert len(defence.steps) == 4


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_dataloader_iter_flavour_is_refused(tmp_path):
    class Iterates(PlainRegressor):
        def training_step(self, dataloader_iter):
            return mse_loss(*self.predict_lower(next(dataloader_iter)[0]))

    with pytest.raises(DefenceConflictError, match="`add_one` works on batches, but `Iterates.training_step`"):
        fit(tmp_path, Iterates(), plain_images(), [AddOne()])


def test_skipped_batches_are_skipped(tmp_path):
    class Skips(PlainRegressor):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    defence = AddOne()
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(tmp_path, Skips(), plain_images(), [defence])
    assert [i for i, _, _ in defence.steps] == [0, 2]


def test_patched_instance_keeps_its_patch(tmp_path):
    module, calls = PlainRegressor(), []
    own = module.training_step

    def patched(batch, batch_idx):
        calls.append(batch_idx)
        return own(batch, batch_idx)

    module.training_step = patched
    defence = AddOne()
    fit(tmp_path, module, plain_images(), [defence])
    assert calls == [0, 1, 2, 3] == [i for i, _, _ in defence.steps]
    assert module.__dict__["training_step"] is patched


def test_patch_over_the_interception_fails_closed(tmp_path):
    class Usurper(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            pl_module.training_step = PlainRegressor.training_step.__get__(pl_module)

    with pytest.raises(NoEffectError, match="`add_one` was never asked for the loss"):
        fit(tmp_path, PlainRegressor(), plain_images(), [AddOne(), Usurper()])


class Bare(L.LightningModule):
    """Not of the package, whose run-time type checks the compiler cannot trace."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_compiled_module_trains_under_a_defence(tmp_path):
    defence, running = AddOne(), trainer(tmp_path, limit_val_batches=0)
    running.callbacks.insert(0, defence)
    with quiet():
        running.fit(torch.compile(Bare(), backend="eager"), plain_images())
    assert len(defence.steps) == 4
    plain = fit(tmp_path, Bare(), plain_images(), limit_val_batches=0)
    assert not compare(dict(running.lightning_module.state_dict()), plain.weights, tolerance=1e-6)


# --- the other slots ----------------------------------------------------------------------------------------------


def test_gradient_slot_equals_a_smaller_learning_rate(tmp_path):
    halved = fit(tmp_path, PlainRegressor(lr=0.05), plain_images(), [GradientDummy(0.5)])
    slower = fit(tmp_path, PlainRegressor(lr=0.025), plain_images())
    assert not compare(halved.weights, slower.weights, tolerance=1e-6)


def test_post_step_runs_after_optimizer_steps_only(tmp_path):
    class Counts(PostStepDummy):
        calls = 0

        def after_step(self, trainer, module):
            self.calls += 1
            super().after_step(trainer, module)

    defence = Counts(bound=0.01)
    fitted = fit(tmp_path, PlainRegressor(), plain_images(), [defence], accumulate_grad_batches=2)
    assert fitted.trainer.global_step == defence.calls == 2
    assert all(p.abs().max() <= 0.01 for p in fitted.module.parameters())


def test_non_leaders_act_once_a_step(tmp_path):
    class Twice(GradientDummy):
        name: ClassVar[str] = "twice"

    both = fit(tmp_path, PlainRegressor(lr=0.05), plain_images(), [GradientDummy(0.5), Twice(0.5)])
    slower = fit(tmp_path, PlainRegressor(lr=0.0125), plain_images())
    assert not compare(both.weights, slower.weights, tolerance=1e-6)


# --- giving the module back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_batch_end"])
def test_module_is_released_after_an_exception(tmp_path, hook):
    def fail(self, *args, **kwargs):
        raise ZeroDivisionError

    module = PlainRegressor()
    bad = type("Bad", (L.Callback,), {hook: fail})()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module, plain_images(), [SurgeryDummy(), AddOne(), bad])
    assert _clean(module)


def test_module_left_by_a_crashed_run_is_taken_over(tmp_path):
    class Deaf(AddOne):
        def on_exception(self, trainer, pl_module, exception):
            """Lose the hook, as where another callback's `on_exception` raises first."""

    class Fail(L.Callback):
        def on_train_start(self, trainer, pl_module):
            raise ZeroDivisionError

    module, second = PlainRegressor(), AddOne()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module, plain_images(), [Deaf(), Fail()])
    assert not _clean(module)
    fit(tmp_path, module, plain_images(), [second])
    assert len(second.steps) == 4
    assert _clean(module)


def test_conflict_leaves_the_module_clean(tmp_path):
    module = PlainRegressor()
    with pytest.raises(DefenceConflictError):
        fit(tmp_path, module, plain_images(), [GradientDummy(), PostStepDummy()])
    assert _clean(module)


@pytest.mark.filterwarnings("ignore:`.fit\\(ckpt_path=None\\)` was called without a model")
@pytest.mark.filterwarnings("ignore:.fit\\(ckpt_path=.last.\\) is set, but there is no last checkpoint")
def test_checkpoint_on_exception_still_has_the_manifest(tmp_path):
    class Fail(L.Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(
            tmp_path,
            PlainRegressor(),
            plain_images(),
            [SurgeryDummy(), Fail(), OnExceptionCheckpoint(str(tmp_path))],
            enable_checkpointing=True,
        )
    saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    assert list(saved[KEY]["defences"]) == ["surgery_dummy"]


def test_copy_made_during_fit_is_not_trained_undefended(tmp_path):
    copies = []

    class Copy(L.Callback):
        def on_train_end(self, trainer, pl_module):
            copies.append(copy.deepcopy(pl_module))

    fit(tmp_path, PlainRegressor(), plain_images(), [AddOne(), Copy()])
    with pytest.raises(DefenceConflictError, match="A copy of a defended PlainRegressor"):
        fit(tmp_path, copies[0], plain_images())


def test_module_pickles_after_fit(tmp_path):
    module = fit(tmp_path, PlainRegressor(), plain_images(), [SurgeryDummy(), AddOne()]).module
    assert not compare(dict(pickle.loads(pickle.dumps(module)).state_dict()), dict(module.state_dict()))


# --- several fits -------------------------------------------------------------------------------------------------


def test_second_fit_goes_on_and_another_run_starts_anew(tmp_path):
    defence, module, data = ObjectiveDummy(), ProtocolRegressor(), plain_images()
    running = fit(tmp_path, module, data, [defence]).trainer
    first = defence.learner
    running.fit_loop.max_epochs = 2
    with quiet():
        running.fit(module, data)
    assert defence.learner is first
    assert first.steps == 8
    running.fit_loop.max_epochs = 3
    with quiet():
        running.fit(ProtocolRegressor(), data)  # another module
    assert defence.learner is not first
    assert defence.learner.steps == 4
    fit(tmp_path, module, data, [defence])  # another trainer
    assert defence.learner.steps == 4


def test_second_fit_from_a_checkpoint_takes_its_state(tmp_path):
    defence, module, data = ObjectiveDummy(), ProtocolRegressor(), plain_images()
    running = fit(tmp_path, module, data, [defence]).trainer
    running.save_checkpoint(tmp_path / "one.ckpt")
    state = copy.deepcopy(defence.state_dict())
    running.fit_loop.max_epochs = 2
    with quiet():
        running.fit(module, data)
        running.fit_loop.max_epochs = 1
        running.fit(module, data, ckpt_path=str(tmp_path / "one.ckpt"), weights_only=True)
    assert not compare(defence.state_dict(), state)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_lbfgs_is_refused_before_the_first_step(tmp_path):
    class Quasi(PlainRegressor):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(UnsupportedStrategyError, match="`objective_dummy` requires ONE_STEP_PER_CLOSURE.*LBFGS"):
        fit(tmp_path, Quasi(), plain_images(), [ObjectiveDummy()])


def test_batchnorm_is_refused_by_name(tmp_path):
    class Normed(PlainRegressor):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

    with pytest.raises(
        DefenceConflictError, match="`gradient_dummy` requires NO_CROSS_SAMPLE_LAYERS.*BatchNorm1d `norm`"
    ):
        fit(tmp_path, Normed(), plain_images(), [GradientDummy()])


def test_arguments_that_no_manifest_can_hold_are_refused_at_the_start(tmp_path):
    class Calls(SurgeryDummy):
        def __init__(self, fn=None):
            super().__init__()
            self.fn = fn

    with pytest.raises(ManifestError, match="The argument `fn` of `surgery_dummy`.*import path"):
        fit(tmp_path, PlainRegressor(), plain_images(), [Calls(lambda x: x)])


def test_idle_defence_changes_no_signature_that_lightning_looks_at(tmp_path):
    """A surgery alone does not touch the step, an objective alone not `configure_model`."""
    seen = {}

    class Look(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            seen.update({m: m in pl_module.__dict__ for m in METHODS})

    fit(tmp_path, PlainRegressor(), plain_images(), [SurgeryDummy(), Look()])
    assert seen == {"training_step": False, **dict.fromkeys(METHODS[1:], True)}
    fit(tmp_path, PlainRegressor(), plain_images(), [AddOne(), Look()])
    assert seen == {
        "training_step": True,
        "configure_model": False,
        "on_save_checkpoint": True,
        "on_load_checkpoint": True,
    }
