"""An over-fitted digits classifier for attacks that need no shadow models."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_privacy.attacks.membership.queries import query_views
from lightning_privacy.core.results import Signals


def train_digits(seed=0, members=400, wrong=0.2, steps=1500):
    """A network trained until it knows its members by heart, a fifth of all labels being drawn anew, and four roles."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor(digits.target)
    noisy = torch.rand(len(labels), generator=g) < wrong
    labels = torch.where(noisy, torch.randint(10, (len(labels),), generator=g), labels)
    order = torch.randperm(len(labels), generator=g)
    cuts = (0, members // 2, members, members + 400, len(labels))
    roles = [order[a:b] for a, b in pairwise(cuts)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        head = nn.Linear(64, 10)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
        train = order[:members]
        for _ in range(steps):
            rows = train[torch.randint(members, (64,))]
            optimizer.zero_grad()
            F.cross_entropy(head(body(images[rows])), labels[rows]).backward()
            optimizer.step()

    @torch.no_grad()
    def signals(rows, queries=1):
        views = [head(body(view)) for view in query_views(images[rows], queries)]
        ids = tuple(f"{int(row):08x}" for row in rows)
        return Signals(ids, logits=torch.stack(views, 1), embedding=body(images[rows]), labels=labels[rows])

    names = ("aux_member", "member", "attack_nonmember", "holdout")
    return SimpleNamespace(
        images=images,
        labels=labels,
        predict=lambda x: head(body(x)).argmax(1),
        rows=dict(zip(names, roles, strict=True)),
        signals=signals,
        **{name: signals(rows) for name, rows in zip(names, roles, strict=True)},
    )


@pytest.fixture(scope="session")
def overfitted_digits():
    return train_digits()
