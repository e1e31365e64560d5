import copy
import json

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_privacy.attacks.membership.averaged_loss import AveragedLoss
from lightning_privacy.attacks.membership.h_prime import HPrime
from lightning_privacy.callbacks.audits.membership import MembershipAudit, audit_membership
from lightning_privacy.callbacks.audits.structural import StructuralAudit
from lightning_privacy.callbacks.canaries.callback import CanaryAudit
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError

CHEAP = ["averaged_loss", "calibrated_loss"]
FEW = {"timesteps": [200, 600], "draws": 2, "bootstrap": 100}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def random_states():
    # Not Python's own: beartype draws from it at every check of a container.
    return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002


class Shift(Defence):
    name = "shift"
    adaptive_attacks = ("lightning_privacy.attacks.membership.trained_calibrated:TrainedCalibrated",)


class Undefeated(Shift):
    name = "undefeated"
    adaptive_attacks = ()


# The audit asks a defence for its name and its attacks alone; its own hooks are tested with the stack.
for hook in ("setup", "on_fit_start", "on_before_optimizer_step", "on_train_batch_end", "on_exception", "teardown"):
    setattr(Shift, hook, lambda self, *args, **kwargs: None)


def test_a_planted_leak_is_found_and_nothing_is_found_without(diffusion, split):
    diffusion.leak = 0.1
    results = {r.attack: r for r in audit_membership(diffusion, split, CHEAP, **FEW)}
    assert results["calibrated_loss"].metrics["auroc"].value == 1.0
    assert results["calibrated_loss"].strongest
    assert not results["averaged_loss"].strongest
    assert not any("found no leak" in note for note in results["calibrated_loss"].notes)
    diffusion.leak = 0.0
    with torch.no_grad():
        diffusion.tuned.weight += 0.2
    quiet = audit_membership(diffusion, split, CHEAP, **FEW)
    assert all(r.metrics["auroc"].low < 0.5 for r in quiet)
    assert any("proves nothing" in note for note in quiet[0].notes)


def test_every_field_of_a_result(diffusion, split):
    diffusion.leak = 0.02
    result = audit_membership(diffusion, split, ["calibrated_loss"], **FEW)[0]
    assert result.family == "membership"
    assert dict(result.n) == {"member": 10, "holdout": 10}
    assert result.split_hash == "f" * 64
    assert set(result.metrics) == {
        "advantage",
        "auroc",
        "balanced_accuracy",
        "epsilon_lower",
        "tpr_at_fpr_0.001",
        "tpr_at_fpr_0.01",
        "tpr_at_fpr_0.05",
    }
    tpr = result.metrics["tpr_at_fpr_0.05"]
    assert not tpr.valid
    assert "200 needed" in tpr.reason
    assert 0 <= tpr.value <= 1
    assert any("0.132" in note for note in result.notes)  # sqrt(21 / 1200)
    assert result.roc[0] == (0.0, 0.0)
    assert result.extra["fit"] == {"member": 10, "nonmember": 10}
    assert result.extra["draws"] == 4
    assert result.extra["timesteps"] == [200, 600]
    assert len(result.extra["member_scores"]) == len(result.extra["nonmember_scores"]) == 10
    assert AttackResult.from_json(result.to_json()).metrics == dict(result.metrics)


def test_audits_repeat_exactly_and_the_seed_matters(diffusion, split):
    scores = [
        audit_membership(diffusion, split, [HPrime((32, 16), patience=3)], **FEW, seed=seed)[0].extra["member_scores"]
        for seed in (0, 0, 1)
    ]
    assert scores[0] == scores[1] != scores[2]


def test_all_attacks_by_default_and_only_possible_ones_for_a_classifier(diffusion, classifier, split):
    assert {r.attack for r in audit_membership(diffusion, split, **FEW)} == {
        "averaged_loss",
        "calibrated_loss",
        "h_prime",
        "trained_calibrated",
    }
    results = audit_membership(classifier, split, **FEW)
    assert {r.attack for r in results} == {
        "averaged_loss",
        "augmentation_agreement",
        "class_confidence",
        "modified_entropy",
        "population",
        "scaled_confidence",
        "worst_case",
    }
    assert results[0].extra["draws"] == 1


def test_callback_appends_logs_and_audits_each_model_once(diffusion, split, trainer_of, tmp_path):
    audit = MembershipAudit(CHEAP, every_n_epochs=1, **FEW)
    trainer = trainer_of(audit, max_epochs=2, logger=CSVLogger(tmp_path, "csv", version=0))
    trainer.fit(diffusion, datamodule=split)
    results = RunFolder(tmp_path).results()
    assert [(r.attack, r.epoch, r.step) for r in results] == [
        ("averaged_loss", 1, 5),
        ("calibrated_loss", 1, 5),
        ("averaged_loss", 2, 10),
        ("calibrated_loss", 2, 10),
    ]
    assert sum(r.strongest for r in results) == 2
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("calibrated_loss/auroc", "strongest/auroc", "strongest/auroc_low", "strongest/auroc_high"):
        assert f"attack/membership/{name}" in header
    assert not [name for name in header if "tpr_at_fpr" in name]  # too few records: results.jsonl says why
    logged = float(trainer.callback_metrics["attack/membership/calibrated_loss/auroc"])
    assert logged == pytest.approx(results[-1].metrics["auroc"].value)


def test_the_end_is_audited_and_logged(diffusion, split, trainer_of, tmp_path):
    audit = MembershipAudit(["averaged_loss"], **FEW)
    trainer = trainer_of(audit, max_epochs=1, logger=CSVLogger(tmp_path, "csv", version=0))
    trainer.fit(diffusion, datamodule=split)
    assert [(r.epoch, r.step) for r in RunFolder(tmp_path).results()] == [(1, 5)]
    assert "attack/membership/strongest/auroc" in trainer.callback_metrics
    assert "attack/membership/strongest/auroc" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()


def test_training_is_bit_equal_with_and_without_the_audit(diffusion, split, trainer_of):
    finals = []
    for callbacks in ([], [MembershipAudit(None, every_n_epochs=1, **FEW)]):
        module = copy.deepcopy(diffusion)
        L.seed_everything(5, verbose=False)
        trainer_of(*callbacks, max_epochs=2).fit(module, datamodule=split)
        finals.append((weights(module), [m.training for m in module.modules()], random_states()))
    plain, audited = finals
    assert all(torch.equal(plain[0][k], audited[0][k]) for k in plain[0])
    assert plain[1:] == audited[1:]
    assert not torch.equal(plain[0]["tuned.weight"], diffusion.tuned.weight)  # it did train


def test_the_attackers_weights_move_and_the_targets_do_not(diffusion, split, monkeypatch):
    moved = []
    original = HPrime._train

    def watched(self, network, *args):
        before = weights(network)
        flat = original(self, network, *args)
        moved.append(max(float((before[k] - v).abs().max()) for k, v in network.state_dict().items()))
        return flat

    monkeypatch.setattr(HPrime, "_train", watched)
    before = weights(diffusion)
    diffusion.leak = 0.3
    audit_membership(diffusion, split, ["h_prime"], **FEW)
    assert max(moved) > 1e-4
    assert all(torch.equal(before[k], v) for k, v in diffusion.state_dict().items())


def test_adaptive_attacks_of_defences_run_and_their_absence_is_said(diffusion, split, trainer_of):
    audit = MembershipAudit(["averaged_loss"], **FEW)
    trainer_of(audit, Shift(), Undefeated(), max_epochs=1).fit(diffusion, datamodule=split)
    assert {r.attack for r in audit.last_results} == {"averaged_loss", "trained_calibrated"}
    notes = audit.last_results[0].notes
    assert any("insufficient_evidence" in note and "undefeated" in note for note in notes)
    assert not any("`shift`" in note for note in notes)


def test_further_attacks_are_objects(diffusion, split, trainer_of):
    class Louder(AveragedLoss):
        name = "louder"

    assert [r.attack for r in audit_membership(diffusion, split, ["averaged_loss", Louder()], **FEW)][1] == "louder"
    audit = MembershipAudit(["averaged_loss"], **FEW)
    audit.extra_attacks = (Louder(),)
    trainer_of(audit, max_epochs=1).fit(diffusion, datamodule=split)
    assert [r.attack for r in audit.last_results] == ["averaged_loss", "louder"]


def test_bad_arguments_and_missing_parts(diffusion, classifier, split, trainer_of):
    with pytest.raises(InputError, match=r"secmi.*averaged_loss,.*calibrated_loss"):
        MembershipAudit(["secmi"])
    with pytest.raises(InputError, match="draws=0"):
        MembershipAudit(draws=0)
    for audit in (MembershipAudit, StructuralAudit, CanaryAudit):
        with pytest.raises(InputError, match=f"{audit.__name__}.every_n_epochs=0.: give at least 1"):
            audit(every_n_epochs=0)
    with pytest.raises(InputError, match="different names"):
        audit_membership(diffusion, split, ["averaged_loss", AveragedLoss()])
    with pytest.raises(SplitError, match="MembershipSplit"):
        trainer_of(MembershipAudit()).fit(diffusion, split.train_dataloader())
    with pytest.raises(MissingProtocolError, match=r"calibrated_loss.*ToyClassifier"):
        trainer_of(MembershipAudit(CHEAP)).fit(classifier, datamodule=split)
    split.roles["holdout"] = []
    with pytest.raises(SplitError, match=r"holdout.*fractions"):
        trainer_of(MembershipAudit(CHEAP)).fit(diffusion, datamodule=split)


def test_an_unconverged_attacker_is_marked(diffusion, split):
    result = audit_membership(diffusion, split, [HPrime(max_epochs=1)], **FEW)[0]
    assert result.converged is False
    assert any("did not converge" in note for note in result.notes)
    assert json.loads(result.to_json())["converged"] is False
