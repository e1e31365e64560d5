"""The audit of a locked model: what it reports, what it refuses, and that the key is in none of it."""

import math
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

from lightning_privacy.callbacks import LockAudit, ModelLock
from lightning_privacy.callbacks.audits.lock_guesses import guesses_for
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.datamodules import LockedDataModule, MembershipSplit
from lightning_privacy.editors import LockSecret, NegativePositiveEditor
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.testing.settings import locked_images, split_images, tiny_classifier
from lightning_privacy.testing.toy_data import ToyImages


def editor_of():
    return NegativePositiveEditor.with_secret(LockSecret(seed=bytes(32)))


QUICK = {"fine_tune": {"steps": 4, "rates": [1e-3]}, "pair_unlocker": {"steps": 4}}


def fit(folder, data, *callbacks, epochs=1):
    module = tiny_classifier()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer, module


def audit(**more):
    attacks = ["no_key", "mean_residual", "wrong_seed", "fine_tune", "pair_unlocker"]
    return LockAudit(**{"attacks": attacks, "attack_args": QUICK, "shares": [0.1, 0.5], **more})


def test_a_run_reports_up_lp_every_attack_and_what_stands_beside_them(tmp_path):
    watch, data = audit(shares=[0.1, 0.5, 0.9, 1.0]), locked_images()  # the last three are more than the attacker has
    fit(tmp_path, data, ModelLock("wrong_label"), watch)
    members, own = (len(data.roles[role]) for role in ("member", "attack_nonmember"))
    counts = [math.ceil(0.1 * members), own - round(0.2 * own)]
    assert counts[1] < 0.5 * members
    results = {r.attack: r for r in RunFolder(tmp_path).results()}
    assert {r.attack for r in watch.last_results} == set(results)
    references = {n for n, r in results.items() if r.family == "lock_reference"}
    assert references == {"with_key", "chance", *(f"scratch/{k}_labels" for k in counts)}
    attacks = {n for n, r in results.items() if r.family == "lock"}
    assert attacks == {
        "no_key", "mean_residual", "wrong_seed", "pair_unlocker", "strongest", *(f"fine_tune/{k}_labels" for k in counts)
    }  # fmt: skip
    best = results["strongest"]
    assert best.strongest and results[best.extra["chosen_attack"]].metrics == best.metrics
    own = {n: results[n].extra["own_accuracy"] for n in attacks - {"strongest"}}
    assert own[best.extra["chosen_attack"]] == max(own.values())
    assert [results[f"fine_tune/{k}_labels"].extra["cost"]["labels"] for k in counts] == counts
    measured = attacks | references - {"chance"}
    assert {(n, results[n].extra["choice_role"]) for n in measured} == {(n, "val") for n in measured}
    assert all(0 <= results[n].extra["choice_accuracy"] <= 1 for n in measured)
    assert best.extra["choice_accuracy"] == results[best.extra["chosen_attack"]].extra["choice_accuracy"]
    assert all(0 <= r.metrics["accuracy"].value <= 1 for r in results.values())
    low, high = results["no_key"].metrics["accuracy"].low, results["no_key"].metrics["accuracy"].high
    assert low <= results["no_key"].metrics["accuracy"].value <= high
    assert list(Path(tmp_path).rglob("lock-epoch-0001*.png"))


def test_a_model_without_a_lock_is_told_so(tmp_path):
    inner = LockedDataModule(ToyImages(n=96, size=8, batch_size=8), editor_of(), cache=None, locked=False)
    watch = audit(attacks=["no_key"])
    fit(tmp_path, MembershipSplit(inner), watch)
    assert any("No lock was trained" in n for n in watch.last_results[0].notes)


def test_a_model_that_learned_nothing_proves_nothing_of_its_lock(tmp_path):
    watch = audit(attacks=["no_key"], grid=False)
    trainer, module = fit(tmp_path, locked_images(), ModelLock("wrong_label"))
    for weight in module.parameters():
        weight.data.zero_()
    module.scores.bias.data[3] = 1.0  # of four classes, of which the pictures have two
    (best,) = (r for r in watch.measure(trainer, module, 1, True) if r.strongest)
    assert any("no better than guessing" in note for note in best.notes)
    assert not any("does not hold" in note for note in best.notes)


def test_the_key_is_in_no_result(tmp_path):
    secret = bytes(range(32))
    fit(tmp_path, locked_images(), ModelLock("wrong_label"), audit())
    written = b"".join(p.read_bytes() for p in Path(tmp_path).rglob("*") if p.is_file())
    assert secret not in written and secret.hex().encode() not in written
    assert b"own_accuracy" in written


def test_what_is_scored_chooses_nothing(tmp_path):
    def chosen(flip):
        watch = audit(grid=False)
        data = locked_images()
        read = data.loader

        def loader(role, *a, **k):
            for batch in read(role, *a, **k):
                turned = {**batch, "label": (batch["label"] + 1) % 2} if role == "holdout" and flip else batch
                yield turned

        trainer, module = fit(tmp_path / str(flip), data, ModelLock("wrong_label"))
        data.loader = loader
        results = watch.measure(trainer, module, 1, True)
        return [
            (r.attack, r.extra.get("chosen"), r.extra.get("own_accuracy"), r.extra.get("chosen_attack"))
            for r in results
        ]

    assert chosen(False) == chosen(True)


def test_guessed_keys_are_none_that_a_model_was_trained_against():
    data = LockedDataModule(ToyImages(n=8, size=8), editor_of(), cache=None, decoys=6)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (guess,) = guesses_for(data.editor, ("wrong_seed",))
    known = [editor.edit(x) for editor in data.editors().values()]
    assert len(known) == 7 and not any(torch.equal(guess.edit(x), each) for each in known)


def test_bad_arguments_and_data_without_a_lock_are_refused(tmp_path):
    for wrong in (
        {"attacks": ["lockpick"]},
        {"attack_args": {"fine_tune": {"speed": 1}}},
        {"shares": [0.0]},
        {"shares": [1.5]},
    ):
        with pytest.raises(InputError):
            LockAudit(**wrong)
    with pytest.raises(NoEffectError, match="LockedDataModule"):
        fit(tmp_path, split_images(), audit())
