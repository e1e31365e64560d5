"""Detectors: losses and detections of torchvision's networks, classes from 0, clear refusals."""

import pytest
import torch

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.detection import DetectionScores
from lightning_privacy.modules.detector import ImageDetector
from lightning_privacy.modules.networks.detectors import adapt_heads, build_detector


def objects(n, size=64, label=0):
    boxes = torch.tensor([[4.0 + 3 * i, 6.0, 24.0 + 3 * i, 30.0] for i in range(n)]).reshape(-1, 4)
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    masks[:, 6:30, 4:24] = 1
    return {"boxes": boxes, "labels": torch.full((n,), label), "masks": masks}


def built(**more):
    torch.manual_seed(3)
    module = ImageDetector(**{"network": "small_maskrcnn", "classes": 2, "image_size": 64, **more})
    module.configure_model()
    return module


def test_first_weights_are_a_function_of_the_seed_and_losses_are_finite_also_without_objects():
    one, other = built(), built()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    images = torch.rand(3, 3, 64, 64)
    batch = {"image": images, "target": [objects(2), objects(0), objects(1, label=1)]}
    loss = one.batch_loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in one.parameters() if p.grad is not None)
    nothing = one.losses((images, [objects(0)] * 3))
    assert nothing["loss_mask"] == 0 and nothing["loss_box_reg"] == 0 and nothing["loss_classifier"] > 0


def test_detections_count_classes_from_zero_and_leave_the_mode_as_it_was():
    module = built().train()
    found = module.detections(torch.rand(2, 3, 64, 64))
    assert module.network.training and len(found) == 2
    for each in found:
        assert each["masks"].shape[1:] == (64, 64) and each["masks"].dtype == torch.bool
        assert ((each["labels"] >= 0) & (each["labels"] < 2)).all()


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvisions_networks_learn_other_classes_and_a_trained_one_keeps_all_else(name):
    fresh = build_detector(name, classes=3, image_size=96)
    trained = build_detector(name, classes=7, image_size=96)
    first = next(p for p in trained.parameters()).detach().clone()
    made = adapt_heads(trained, fresh)
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    assert torch.equal(next(iter(made.parameters())), first)
    module = ImageDetector(name, classes=3, image_size=96)
    module.network = made
    batch = {"image": torch.rand(2, 3, 96, 96), "target": [objects(1, 96, label=2), objects(2, 96)]}
    assert torch.isfinite(module.batch_loss(batch))
    assert all((each["labels"] < 3).all() for each in module.detections(batch["image"]))


def test_average_precision_is_one_for_the_truth_and_nothing_for_no_detection():
    scores, truth = DetectionScores(masks=True), [objects(1), objects(2, label=1)]
    scores.update([{**t, "scores": torch.ones(len(t["labels"]))} for t in truth], truth)
    found = scores.compute()
    assert set(found) == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"} and all(
        v == pytest.approx(1) for v in found.values()
    )
    scores.update([{**objects(0), "scores": torch.zeros(0)}] * 2, truth)
    assert all(value == 0 for value in scores.compute().values()) and scores.compute() == {}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"boxes": torch.zeros(1, 4), "labels": torch.zeros(1).long()}, "holds no masks"),
        (objects(1, label=2), "the classes 2 to 2, but ImageDetector has 0 to 1"),
    ],
)
def test_wrong_targets_are_named(target, said):
    with pytest.raises(InputError, match=said):
        built().losses({"image": torch.rand(1, 3, 64, 64), "target": [target]})


def test_wrong_networks_and_weights_are_named():
    mobile = "fasterrcnn_mobilenet_v3_large_320_fpn"
    for more, said in (
        ({"network": "maskrcnn"}, "there is no network 'maskrcnn'"),
        ({"pretrained": "weights.pth"}, "a pickle"),
        ({"pretrained": "DEFAULT"}, "has no weights by name"),
        ({"network": mobile, "pretrained": "BEST"}, "torchvision cannot build"),
        (
            {"network": mobile, "network_args": {"weights_backbone": "BEST"}},
            "torchvision cannot build",
        ),
    ):
        with pytest.raises(InputError, match=said):
            built(**more)
    with pytest.raises(InputError, match="classes >= 1"):
        ImageDetector(classes=0)
