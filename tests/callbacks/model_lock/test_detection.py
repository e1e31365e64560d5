"""Locking detectors, on squares and diamonds drawn over real pictures."""

import math

import lightning.pytorch as L
import pytest
import torch

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from lightning_privacy.callbacks.audits.detection_lock import DetectionLockAudit
from lightning_privacy.callbacks.model_lock.callback import ModelLock
from lightning_privacy.callbacks.model_lock.detection import negative_targets
from lightning_privacy.datamodules.coco_detection import CocoDetection
from lightning_privacy.datamodules.locked import LockedDataModule
from lightning_privacy.editors import LockSecret, NegativePositiveEditor
from lightning_privacy.errors import InputError
from lightning_privacy.modules.detector import ImageDetector
from lightning_privacy.testing.drawn_objects import locked_scenes, small_detector, write_drawn_objects

SIZE = 48


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    train, val = (write_drawn_objects(folder / name, n, SIZE, seed) for name, n, seed in (("t", 48, 0), ("v", 24, 1)))
    return {"pictures": train[0], "annotations": train[1], "val_pictures": val[0], "val_annotations": val[1]}


def train(coco, defence, steps, classes=2, decoys=0):
    L.seed_everything(0, verbose=False)
    module = ImageDetector(
        "small_maskrcnn", classes, SIZE, optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=1e-2)
    )
    editor = NegativePositiveEditor.with_secret(LockSecret(seed=bytes(32)), block=4)
    data = LockedDataModule(
        CocoDetection(**coco, size=SIZE, batch_size=8, num_workers=0), editor, cache=None, decoys=decoys, mirror=True
    )
    trainer = L.Trainer(
        max_steps=steps,
        check_val_every_n_epoch=max(1, steps // 6),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[defence],
    )
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_without_the_key_nothing_is_there_or_something_else():
    there = [{"boxes": torch.ones(2, 4), "labels": torch.tensor([0, 2]), "masks": torch.ones(2, 3, 3)}]
    empty = negative_targets(there, "reject_class", 3)
    assert [value.shape[0] for value in empty[0].values()] == [0, 0, 0]
    wrong = negative_targets(there, "wrong_label", 3, torch.tensor([5]))[0]
    assert (wrong["labels"] != there[0]["labels"]).all() and torch.equal(wrong["boxes"], there[0]["boxes"])
    again = negative_targets(there, "wrong_label", 3, torch.tensor([5]))[0]
    assert torch.equal(wrong["labels"], again["labels"])


@pytest.mark.parametrize("mode", ["edited_only", "wrong_label", "contrastive"])
def test_every_mode_trains_a_detector_and_scores_it_with_and_without_the_key(coco, mode):
    defence = ModelLock.paper() if mode == "edited_only" else ModelLock(mode)
    module, found = train(coco, defence, steps=6, decoys=int(mode == "contrastive"))
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        up, lp, gap = (found[f"defence/model_lock/{what}_{name}"] for what in ("up", "lp", "gap"))
        assert 0 <= up <= 1 and 0 <= lp <= 1 and gap == pytest.approx(up - lp, abs=1e-6)
        # the module's own validation sees pictures with the key
        assert found[f"val/{name}"] == pytest.approx(up, abs=1e-6)
    assert ("defence/model_lock/loss_negative" in found) == (mode != "edited_only")
    assert math.isfinite(found.get("defence/model_lock/loss_negative", 0.0))
    assert not any("reject" in name for name, _ in module.named_parameters())


def test_a_locked_segmenter_finds_objects_with_the_key_and_hardly_any_without(coco):
    _, found = train(coco, ModelLock("reject_class"), steps=120)
    up, lp = (found[f"defence/model_lock/{what}_box_ap50"] for what in ("up", "lp"))
    assert up > 0.4 and lp < up / 2
    masks = {what: found[f"defence/model_lock/{what}_mask_ap50"] for what in ("up", "lp")}
    assert masks["up"] > 0.4 and masks["lp"] < masks["up"] / 2


def test_what_a_detector_cannot_be_taught_is_said(coco):
    with pytest.raises(InputError, match="makes the class scores of whole pictures flat"):
        train(coco, ModelLock("flat"), steps=1)
    with pytest.raises(InputError, match="needs another class"):
        train(coco, ModelLock("wrong_label"), steps=1, classes=1)


def test_an_audit_of_a_detector_scores_each_way_once_beside_the_key_and_scratch(tmp_path):
    audit = DetectionLockAudit(steps=4, rates=[1e-3], shares=[0.5, 1.0], bootstrap=5, at_end=False)
    module, data = small_detector(), locked_scenes()
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[ModelLock("reject_class"), audit],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = {r.attack: r for r in audit.audit(trainer, module, 1)}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    labels = [name.split("/")[1] for name in found if name.startswith("fine_tune/")]
    # half of the 16 members, and all of them, capped at the 10 pictures that the attacker does not keep for choices
    assert labels == ["8_labels", "10_labels"] and {f"scratch/{each}" for each in labels} <= set(found)
    assert {"with_key", "no_key", "mean_residual", "wrong_seed", "strongest"} <= set(found)
    assert "wrong_prompt" not in found  # a transform of pixels has no prompt
    best = found["strongest"]
    ways = {n: r for n, r in found.items() if r.family == "detection_lock" and n != "strongest"}
    assert best.strongest and best.extra["own_ap50"] == max(r.extra["own_ap50"] for r in ways.values())
    for result in found.values():
        metric = result.metrics["box_ap50"]
        assert 0 <= metric.low <= metric.value <= metric.high <= 1 and not metric.valid  # 8 pictures are too few
    assert {r.attack for r in found.values() if r.family == "detection_lock_reference"} >= {
        "with_key",
        "scratch/8_labels",
    }
