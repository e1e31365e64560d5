"""What keeps a run from being released whatever its numbers: results of other weights, other records, or of nothing."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.build import build_dossier
from lightning_privacy.report.dossier.policy import Policy, Rule
from lightning_privacy.testing.toy_run import toy_result, write_toy_run

LAX = Policy(
    name="lax", version=1, rules=[Rule(id="r", metric="auroc", threshold=0.9, severity="block", origin="test")]
)


@pytest.fixture
def dossier(tmp_path):
    """Return a function that writes a run, changes it, and returns its dossier."""

    def make(change=lambda run: None, results=None, **more):
        run = write_toy_run(tmp_path / "run", results, **more)
        change(run)
        return build_dossier(run, LAX).dossier

    return make


def last(run):
    return run.checkpoints / "last.ckpt"


def insufficient(found, words):
    assert found.decision.verdict == "insufficient_evidence"
    assert [w for w in words if w not in " ".join(found.decision.reasons)] == []


def test_an_audited_model_with_its_checkpoint_and_its_split_may_go(dossier):
    found = dossier()
    assert (found.decision.verdict, found.gaps) == ("go", [])
    assert found.subject.checkpoint.path == "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"global_step": 90_000}, ["on the model of step 300", "checkpoints/last.ckpt is of step 90000"]),
        ({"global_step": 200}, ["is of step 200"]),
        ({"state_dict": {}}, ["does not say after how many optimizer steps"]),
        ({"global_step": True}, ["does not say after how many optimizer steps"]),
    ],
)
def test_a_checkpoint_of_another_step_is_not_what_was_attacked(dossier, saved, words):
    insufficient(dossier(lambda run: torch.save(saved, last(run))), words)


class NotPlain:
    def __reduce__(self):
        return (open, ("/nonexistent/never-opened", "w"))


def test_a_checkpoint_that_cannot_be_read_ties_nothing(dossier):
    insufficient(dossier(checkpoint=b"weights"), ["checkpoints/last.ckpt cannot be read"])


def test_a_checkpoint_is_read_without_running_its_code(dossier):
    found = dossier(lambda run: torch.save({"global_step": 300, "x": NotPlain()}, last(run)))
    insufficient(found, ["cannot be read"])
    assert found.subject.checkpoint is None


def test_a_checkpoint_of_the_older_format_is_read(dossier):
    found = dossier(lambda run: torch.save({"global_step": 300}, last(run), _use_new_zipfile_serialization=False))
    assert found.decision.verdict == "go"


def test_a_folder_without_weights_is_not_released(dossier):
    insufficient(dossier(checkpoint=b""), ["no checkpoint in the run's folder"])


def test_an_adapter_names_the_weights_where_there_is_no_checkpoint(dossier):
    def adapter(run):
        run.adapter.mkdir()
        save_file({"a": torch.zeros(2)}, run.adapter / "adapter.safetensors")

    found = dossier(adapter, checkpoint=b"")
    assert found.decision.verdict == "go" and found.subject.checkpoint.path == "adapter/adapter.safetensors"
    assert "does not say of which step" in " ".join(found.limitations)


def test_a_damaged_adapter_names_nothing(dossier):
    def adapter(run):
        run.adapter.mkdir()
        (run.adapter / "adapter.safetensors").write_bytes(b"\x00" * 4)

    insufficient(dossier(adapter, checkpoint=b""), ["adapter/adapter.safetensors cannot be read"])


def test_a_file_trained_elsewhere_is_named_by_its_record(dossier):
    def foreign(run):
        run.foreign.write_text(json.dumps({"path": "/home/ann/w.pt", "sha256": "ab" * 32, "n_bytes": 3}))

    found = dossier(foreign, checkpoint=b"")
    assert found.decision.verdict == "go" and found.subject.checkpoint.path == "w.pt"


@pytest.mark.parametrize("record", ["{", "[1]", '{"path": "a", "sha256": 3, "n_bytes": 1}', "[" * 100_000])
def test_a_damaged_record_of_a_file_trained_elsewhere_is_one_clear_error(dossier, record):
    with pytest.raises(InputError, match=r"checkpoint\.json cannot be read"):
        dossier(lambda run: run.foreign.write_text(record), checkpoint=b"")


def test_metrics_of_later_steps_tell_of_a_model_that_nobody_attacked(dossier):
    insufficient(
        dossier(lambda run: run.metrics.write_text("step,val/loss\n299,0.5\n90000,0.1\n0,0.6\n")),
        ["step 300", "training up to step 90000"],
    )


def test_loggers_may_count_batches_that_manual_optimisation_did_not_step(dossier):
    loops = {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": 1200}}}

    def manual(run):
        run.metrics.write_text("step,val/loss\n1199,0.5\n")
        torch.save({"global_step": 300, "loops": loops}, last(run))

    assert dossier(manual).decision.verdict == "go"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("audits", "words"),
    [
        ({"membership": {"attacks": ["calibrated_loss", "averaged_loss"]}}, ["asks for the attack `averaged_loss`"]),
        ({"membership": {"shadows": 2}}, ["2 shadow models in the audit `membership`"]),
        ({"membership": {}, "canaries": {}}, ["asks for the audit `canaries`"]),
        ({"quality": {"n": 4}}, ["asks for the audit `quality`"]),
        ({"of_another_package": {"n": 4}}, ["asks for the audit `of_another_package`"]),
    ],
)
def test_what_was_configured_and_left_no_result_is_missed(dossier, audits, words, wrapped):
    if wrapped:
        audits = {name: {"class_path": "a.B", "init_args": spec} for name, spec in audits.items()}
    insufficient(dossier(settings={"audits": audits}), words)


def test_what_was_configured_and_ran_is_not_missed(dossier):
    shadowed = toy_result("lira", strongest=True)
    shadowed = replace(shadowed, extra={**shadowed.extra, "shadows": 2})
    canary = replace(toy_result("canary_guess", extra={}), family="canary")
    measured = [{"kind": "quality", "name": "kid", "value": 0.1, "step": 300}]
    asked = {"membership": {"attacks": ["lira"], "shadows": 2}, "canaries": {}, "quality": {}, "structural": None}
    found = dossier(results=[shadowed, canary], settings={"audits": asked}, measurements=measured)
    assert found.gaps == []


def test_an_audit_of_an_earlier_model_alone_is_missed(dossier):
    measured = [{"kind": "quality", "name": "kid", "value": 0.1, "step": 100}]
    insufficient(dossier(settings={"audits": {"quality": {}}}, measurements=measured), ["audit `quality`"])


def split(run, **roles):
    run.split.write_text(json.dumps({"split_hash": "ab" * 32, "roles": roles}))


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"member": ["a", "b"], "holdout": ["c", "a"]}, "1 of the records of `holdout` among the members"),
        ({"member": ["a"], "aux_member": ["c"], "val": ["c"], "holdout": ["d"]}, "1 of the records of `val`"),
        ({"member": [], "holdout": ["a"]}, "no record of the role `member`"),
        ({"member": ["a"], "holdout": []}, "no record of the role `holdout`"),
        ({"member": "abc", "holdout": ["d"]}, "`member` is no list of record ids"),
        ({"member": 3}, "`member` is no list of record ids"),
        ({"member": [["a"]]}, "`member` is no list of record ids"),
    ],
)
def test_a_split_record_that_cannot_be_true_is_refused(dossier, roles, words):
    with pytest.raises(InputError, match=words):
        dossier(lambda run: split(run, **roles))


def test_members_may_have_several_roles_and_unused_roles_may_be_empty(dossier):
    roles = {"member": ["a", "b"], "aux_member": ["a"], "holdout": ["c"], "val": []}
    assert dossier(lambda run: split(run, **roles)).decision.verdict == "go"


def test_results_without_a_split_record_or_on_two_splits_are_not_released(dossier):
    other = toy_result("h_prime", split_hash="cd" * 32)
    found = dossier(lambda run: run.split.unlink(), [toy_result(strongest=True), other])
    insufficient(found, ["no split record", "on different splits"])
