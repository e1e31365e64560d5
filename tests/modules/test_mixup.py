import numpy as np
import torch
import torch.nn.functional as F

from lightning_privacy.modules.mixup import mixed_loss, mixup


def test_mixup_blends_pictures_and_losses_by_the_formula():

    images, labels, logits = torch.rand(5, 1, 4, 4), torch.arange(5), torch.randn(5, 6)
    mixed, partner, share = mixup(images, 0.4, np.random.default_rng(0))
    assert sorted(partner.tolist()) == list(range(5)) and 0 < share < 1
    assert torch.allclose(mixed[2], share * images[2] + (1 - share) * images[partner[2]])
    target = share * F.one_hot(labels, 6) + (1 - share) * F.one_hot(labels[partner], 6)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()  # cross-entropy with the blended target
    assert torch.allclose(mixed_loss(logits, labels, partner, share), expected, atol=1e-6)
