import math

import pytest
import torch

from lightning_privacy.attacks.membership.class_thresholds import fit_class_thresholds
from lightning_privacy.attacks.membership.confidence import ClassConfidence, ScaledConfidence
from lightning_privacy.attacks.membership.entropy import log_modified_entropy
from lightning_privacy.core.results import Signals
from lightning_privacy.metrics.membership import auroc


def test_modified_entropy_equals_its_definition():
    g = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(50, 3, 6, generator=g, dtype=torch.float64), torch.randint(6, (50,), generator=g)
    p = logits.softmax(2)
    own = torch.nn.functional.one_hot(labels, 6).bool().unsqueeze(1)
    expected = torch.where(own, -(1 - p) * p.log(), -p * (1 - p).log()).sum(2)
    assert torch.allclose(log_modified_entropy(logits, labels).exp(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("phi", "expected"),
    # two classes: Mentr = -2 (1 - p) log p, which is 2 exp(-2 phi) for a sure record and -2 log p for a wrong one
    [(200.0, math.log(2) - 400), (45.0, math.log(2) - 90), (-200.0, math.log(400)), (0.0, math.log(math.log(2)))],
)
def test_modified_entropy_of_two_classes_in_closed_form(phi, expected):
    logits = torch.tensor([[[phi, 0.0]]], dtype=torch.float64)
    assert float(log_modified_entropy(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-12)


def test_plain_confidence_averages_the_queries():
    logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
    score = ScaledConfidence().score(Signals(("a", "b"), logits=logits, labels=torch.tensor([0, 0])))
    assert score.tolist() == pytest.approx([2.0, -1.0])


def test_thresholds_of_small_classes_are_shrunk_to_that_of_all():
    members, nonmembers = torch.tensor([1.0] * 40 + [6.0]), torch.tensor([0.0] * 40 + [5.0])
    labels = torch.tensor([0] * 40 + [1])
    fitted = fit_class_thresholds(members, labels, nonmembers, labels, prior_records=10)
    assert fitted.overall == pytest.approx(0.5)
    assert fitted.by_class[0] == pytest.approx(0.5)
    assert fitted.by_class[1] == pytest.approx((1 * 5.5 + 10 * 0.5) / 11)
    assert fitted.of(torch.tensor([1, 7, 0])).tolist() == pytest.approx([fitted.by_class[1], 0.5, 0.5])


def test_class_thresholds_help_where_classes_differ():
    g = torch.Generator().manual_seed(0)
    roles = []
    for member in (True, False, True, False):
        labels = torch.randint(2, (200,), generator=g)
        phi = torch.randn(200, generator=g) + 8.0 * labels + 2.0 * member
        roles.append((phi, labels))
    signals = [
        Signals(
            tuple(map(str, range(200))),
            logits=torch.stack([phi * (labels == 0), phi * (labels == 1)], 1).unsqueeze(1),
            labels=labels,
        )
        for phi, labels in roles
    ]
    plain = auroc(*(ScaledConfidence().score(x) for x in signals[2:]))
    attack = ClassConfidence()
    attack.fit(signals[0], signals[1])
    calibrated = auroc(*(attack.score(x) for x in signals[2:]))
    assert plain < 0.7
    assert calibrated > 0.88  # the ideal is Phi(2 / sqrt 2) = 0.921
