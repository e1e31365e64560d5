import pytest
import torch

from lightning_privacy.attacks.membership.queries import query_views
from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.callbacks.audits.class_scores import class_scores
from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.core.batches import images_of, labels_of, with_images
from lightning_privacy.errors import InputError


class Linear(torch.nn.Module):
    def __init__(self, columns=3):
        super().__init__()
        self.columns = columns

    def logits(self, batch):
        images = images_of(batch)
        return images.flatten(1)[:, : self.columns]


def test_views_are_the_picture_its_mirror_image_and_shifts():
    picture = torch.arange(9.0).view(1, 1, 3, 3)
    raw, mirrored, right, right_mirrored = query_views(picture, 4)
    assert torch.equal(raw, picture)
    assert torch.equal(mirrored, picture.flip(3))
    assert right[0, 0].tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]
    assert torch.equal(right_mirrored, right.flip(3))
    every = query_views(torch.rand(2, 3, 5, 5), 18)
    assert len({view.numpy().tobytes() for view in every}) == 18
    with pytest.raises(InputError, match="1 to 18 views, not 19"):
        query_views(picture, 19)


@pytest.mark.parametrize("kind", ["mapping", "tuple", "list"])
def test_class_scores_ask_about_every_view(kind):
    images, labels = torch.rand(2, 1, 3, 3), torch.tensor([0, 1])
    batch = {"mapping": {"image": images, "label": labels}, "tuple": (images, labels), "list": [images, labels]}[kind]
    scores = class_scores(Linear(), batch, 2)
    assert scores.shape == (2, 2, 3)
    assert torch.equal(scores[:, 1], images.flip(3).flatten(1)[:, :3])
    changed = with_images(batch, images * 2)
    assert type(changed) is type(batch)
    assert torch.equal(images_of(changed), images * 2) and torch.equal(labels_of(changed), labels)


def test_scores_of_another_shape_are_refused():
    class Scalar:
        def logits(self, batch):
            return batch["image"].mean((1, 2, 3))

    with pytest.raises(InputError, match=r"`Scalar.logits` returned \(2,\); attacks on classifiers need one row"):
        class_scores(Scalar(), {"image": torch.rand(2, 1, 3, 3)})
    with pytest.raises(InputError, match="at least two classes"):
        class_scores(Linear(1), {"image": torch.rand(2, 1, 3, 3)})


@pytest.mark.parametrize(
    ("batch", "said"),
    [({"x": torch.rand(2)}, r"a mapping with \['x'\], in which no pictures"), (torch.rand(2), "a Tensor, in which no")],
)
def test_a_batch_without_pictures_is_refused(batch, said):
    with pytest.raises(InputError, match=said):
        images_of(batch)


def test_labels_are_whole_numbers_one_a_picture():
    with pytest.raises(InputError, match="no labels were found"):
        labels_of((torch.rand(2, 1, 3, 3), torch.rand(2)))


def test_scaled_confidence_is_the_log_odds_of_the_true_class_and_does_not_saturate():
    logits, labels = torch.randn(4, 2, 5), torch.tensor([0, 1, 2, 4])
    p = logits.double().softmax(2)[torch.arange(4), :, labels]
    torch.testing.assert_close(scaled_confidence(logits, labels), (p / (1 - p)).log())
    sure = scaled_confidence(torch.tensor([[[60.0, 0.0]], [[61.0, 0.0]]]), torch.tensor([0, 0]))
    assert float(sure[1] - sure[0]) == 1.0


def test_signals_hold_the_views_that_were_asked_for(classifier, split):
    signals = compute_signals(classifier, split, ["holdout"], {"logits"}, queries=3)["holdout"]
    assert signals.logits.shape == (10, 3, 3)
    assert torch.equal(
        signals.logits[:, :1], compute_signals(classifier, split, ["holdout"], {"logits"})["holdout"].logits
    )
