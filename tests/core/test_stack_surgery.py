"""Surgery in a run: which layers it reaches, that it is repeated harmlessly, and averaging beside it."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_privacy.core.defence import SurgeryReport
from lightning_privacy.core.manifest_record import KEY
from lightning_privacy.core.stack import DefenceStack
from lightning_privacy.errors import DefenceConflictError, NoEffectError
from lightning_privacy.testing.dummy_defences import Gained, ObjectiveDummy, SurgeryDummy
from lightning_privacy.testing.fitting import compare, fit, quiet
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_modules import PlainRegressor, ProtocolRegressor

METHODS = ("training_step", "configure_model", "on_save_checkpoint", "on_load_checkpoint")


def _clean(module):
    return not [m for m in METHODS if m in module.__dict__]


def test_surgery_reaches_layers_of_configure_model_and_the_optimizer(tmp_path):
    class Late(PlainRegressor):
        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = nn.Linear(96, 96)

        def predict_lower(self, batch):
            predicted, truth = super().predict_lower(batch)
            return self.late(predicted), truth

    fitted = fit(tmp_path, Late(), plain_images(), [SurgeryDummy(["late"])])
    assert isinstance(fitted.module.late, Gained)
    assert fitted.module.late.gain.item() != 1
    assert any(p is fitted.module.late.gain for g in fitted.trainer.optimizers[0].param_groups for p in g["params"])


def test_surgery_that_matches_nothing_is_an_error(tmp_path):
    class Nothing(SurgeryDummy):
        def surgery(self, module):
            return SurgeryReport()

    with pytest.raises(NoEffectError, match="`surgery_dummy` matched no layer of PlainRegressor"):
        fit(tmp_path, PlainRegressor(), plain_images(), [Nothing()])


def test_surgery_again_in_test_and_second_fit(tmp_path):
    class Tested(PlainRegressor):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    module, data = Tested(), plain_images()
    data.test_dataloader = data.val_dataloader
    fitted = fit(tmp_path, module, data, [SurgeryDummy()])
    keys = set(module.state_dict())
    with quiet():
        fitted.trainer.test(module, data, verbose=False)
        fitted.trainer.fit_loop.max_epochs = 2
        fitted.trainer.fit(module, data)
    assert (
        set(module.state_dict())
        == keys
        == {f"{n}.{k}" for n in ("encoder", "decoder") for k in ("gain", "inner.weight", "inner.bias")}
    )
    report = DefenceStack.of(fitted.trainer).reports["surgery_dummy"]
    assert report.layers == ("encoder", "decoder")
    assert report.parameters_added == 2
    assert _clean(module)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_averaging_copies_the_defended_model(tmp_path):
    saver = ModelCheckpoint(tmp_path, "averaged")
    averaging = EMAWeightAveraging(decay=0.5)
    fitted = fit(
        tmp_path,
        ProtocolRegressor(),
        plain_images(),
        [SurgeryDummy(), ObjectiveDummy(), averaging, saver],
        enable_checkpointing=True,
    )
    saved = torch.load(saver.best_model_path, weights_only=True)
    assert set(saved["state_dict"]) == set(saved["current_model_state"]) == set(fitted.module.state_dict())
    assert compare(saved["state_dict"], saved["current_model_state"])
    assert KEY in saved
    assert _clean(fitted.module)
    assert not compare(fitted.weights, saved["state_dict"])


def test_averaging_before_surgery_is_refused(tmp_path):
    with pytest.raises(DefenceConflictError, match="EMAWeightAveraging copies the model before `surgery_dummy`"):
        fit(tmp_path, PlainRegressor(), plain_images(), [EMAWeightAveraging(), SurgeryDummy()])
    with pytest.raises(DefenceConflictError, match="StochasticWeightAveraging has copied"):
        fit(tmp_path, PlainRegressor(), plain_images(), [SurgeryDummy(), StochasticWeightAveraging(0.01)])


def test_averaging_before_an_objective_alone_is_fine(tmp_path):
    fitted = fit(tmp_path, ProtocolRegressor(), plain_images(), [EMAWeightAveraging(decay=0.5), ObjectiveDummy()])
    assert fitted.trainer.global_step == 4
