from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.attacks.membership.boundary import boundary_distance
from lightning_privacy.attacks.membership.label_only import BoundaryDistance
from lightning_privacy.callbacks.audits import boundary_signals
from lightning_privacy.callbacks.audits.boundary_signals import find_starts, group_distances, pixel_bounds
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan
from lightning_privacy.callbacks.audits.membership import MembershipAudit
from lightning_privacy.callbacks.audits.membership_audit import audit_membership, choose_attacks
from lightning_privacy.callbacks.audits.signals import available_signals, compute_signals, missing_signals
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.metrics.membership import membership_metrics

FIELD = {"boundary_distance"}
PLAN = DrawPlan(seed=3)


@pytest.fixture
def linear(classifier):
    """The toy classifier without offset on centred pictures, so that it predicts every class."""
    with torch.no_grad():
        weight = classifier.net[1].weight
        weight -= weight.mean(1, keepdim=True)
        classifier.net[1].bias.zero_()
    return classifier


def measured(module, split, roles=("eval_member", "holdout"), budget=200, **options):
    return compute_signals(module, split, roles, FIELD, plan=PLAN, boundary_queries=budget, **options)


def pictures(split, role):
    rows = split.indices_of(role)
    return split.images[rows], torch.tensor([split.records[i] % 3 for i in rows])


def test_an_audit_finds_what_the_function_finds_by_hand(linear, split):
    found = measured(linear, split)["holdout"]
    images, labels = pictures(split, "holdout")
    pool = pictures(split, "attack_nonmember")[0]

    @torch.no_grad()
    def predict(x):
        return linear.net(x).argmax(1)

    expected = boundary_distance(
        predict,
        images,
        labels,
        generator=seeded_generator(PLAN.seed, "boundary distance", *found.record_ids),
        queries=200,
        starts=pool,
    )
    assert torch.equal(found.boundary_distance, expected.distance)
    wrong = predict(images) != labels
    assert 0 < int(wrong.sum()) < len(images)
    assert torch.equal(found.boundary_distance == 0, wrong)
    # between two classes of a linear classifier the boundary is a plane, whose distance the search bounds from above
    with torch.no_grad():
        scores, weight = linear.net(images), linear.net[1].weight
        gaps = scores.gather(1, labels.unsqueeze(1)) - scores
        planes = gaps / (weight[labels].unsqueeze(1) - weight).norm(dim=2)
    nearest = planes.scatter(1, labels.unsqueeze(1), torch.inf).min(1).values
    assert bool((found.boundary_distance >= nearest - 1e-5)[~wrong].all())


def test_batches_and_other_roles_change_nothing(linear, split, monkeypatch):
    monkeypatch.setattr(boundary_signals, "_GROUP", 4)
    costs = {}, {}
    small = measured(linear, split, batch_size=4, label_queries=costs[0])
    large = measured(linear, split, ("holdout",), batch_size=16, label_queries=costs[1])
    assert torch.equal(small["holdout"].boundary_distance, large["holdout"].boundary_distance)
    assert torch.equal(costs[0]["holdout"], costs[1]["holdout"])
    other = compute_signals(linear, split, ["holdout"], FIELD, plan=DrawPlan(seed=4), boundary_queries=200)
    assert not torch.equal(other["holdout"].boundary_distance, large["holdout"].boundary_distance)


def test_a_module_that_draws_when_it_predicts_is_pinned(linear, split):
    certain = linear.logits
    linear.logits = lambda batch: certain(batch) + 0.01 * torch.randn(len(batch["image"]), 3)
    before = torch.get_rng_state()
    small = measured(linear, split, batch_size=4)["holdout"]
    large = measured(linear, split, ("holdout",), batch_size=16)["holdout"]
    assert torch.equal(small.boundary_distance, large.boundary_distance)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_queries_reported_are_those_made(linear, split):
    made, honest = [], linear.logits
    linear.logits = lambda batch: (made.append(len(batch["image"])), honest(batch))[1]
    costs = {}
    signals = measured(linear, split, label_queries=costs)
    reported = torch.cat([costs["eval_member"], costs["holdout"]])
    distances = torch.cat([signals["eval_member"].boundary_distance, signals["holdout"].boundary_distance])
    assert int(reported.max()) <= 200
    assert torch.equal(reported == 1, distances == 0)  # a misclassified record costs one query
    # beside them: the ten starts, and for each of the two roles the starts again and its ten records twice
    assert sum(made) - int(reported.sum()) == 10 + 2 * (10 + 2 * 10)
    silent = {}
    compute_signals(linear, split, ["holdout"], {"logits"}, label_queries=silent)
    assert silent == {}


def test_starts_are_the_attackers_own_records(linear, split, monkeypatch):
    asked, honest = [], split.loader
    split.loader = lambda role, batch_size=None: (asked.append(role), honest(role, batch_size))[1]
    measured(linear, split)
    assert set(asked) == {"attack_nonmember", "eval_member", "holdout"}
    assert asked.count("attack_nonmember") == 1
    pool = pictures(split, "attack_nonmember")[0]
    assert torch.equal(find_starts(linear, split, 3).images, pool)
    monkeypatch.setattr(boundary_signals, "_MOST_STARTS", 6)
    monkeypatch.setattr(boundary_signals, "_AT_ONCE", 4)
    some = find_starts(linear, split, 3)
    assert len(some.images) == 6
    assert not torch.equal(some.images, pool[:6])  # a role in order of its classes must not give the first of them
    split.loader = lambda role, batch_size=None: honest("val", batch_size)
    with pytest.raises(SplitError, match="attack_nonmember"):
        find_starts(linear, split, 3)
    split.loader = lambda role, batch_size=None: list(honest(role, batch_size))[:-1]
    with pytest.raises(SplitError, match="yields 8 records, but the role has 10"):
        find_starts(linear, split, 3)
    split.roles["attack_nonmember"] = []
    with pytest.raises(SplitError, match="attack_nonmember, which are empty"):
        find_starts(linear, split, 3)


@pytest.mark.parametrize("kind", ["mapping", "tuple", "list"])
def test_every_form_of_batch_is_searched_with_the_rest_of_it_at_the_right_length(kind, linear, split):
    images, labels = pictures(split, "holdout")
    captions = [f"picture {label}" for label in labels]
    batch = {
        "mapping": {"image": images, "label": labels, "caption": captions, "weight": torch.tensor(2.0)},
        "tuple": (images, labels, captions, torch.tensor(2.0)),
        "list": [images, labels, captions, torch.tensor(2.0)],
    }[kind]

    class Reading(torch.nn.Module):
        by_label = 0.0

        def logits(self, batch):
            assert type(batch) is type(given)
            picture, label, caption, weight = batch.values() if kind == "mapping" else batch
            assert len(picture) == len(label) == len(caption)
            assert float(weight) == 2.0
            return linear.net(picture) + self.by_label * label.unsqueeze(1) * torch.tensor([1.0, 0.0, 0.0])

    given, module, starts = batch, Reading(), find_starts(linear, split, 3)
    ids = tuple(str(i) for i in range(len(images)))
    with torch.no_grad():
        found = group_distances(module, batch, ids, starts, seed=3, queries=60)
        plain = group_distances(linear, {"image": images, "label": labels}, ids, starts, seed=3, queries=60)
        assert torch.equal(found.distance, plain.distance)
        module.by_label = 1.0
        with pytest.raises(InputError, match="`Reading.logits` says something else of a picture when the rest"):
            group_distances(module, batch, ids, starts, seed=3, queries=60)


def test_pictures_of_any_range_are_searched_within_it(linear, split):
    assert pixel_bounds(torch.tensor([0.1, 0.7])) == (0.0, 1.0)
    assert pixel_bounds(torch.tensor([0.1, 1.5])) == (pytest.approx(0.1), 1.5)
    split.images = 4 * split.images - 2
    pool = pictures(split, "attack_nonmember")[0]
    outside = split.indices_of("holdout")[0]
    split.images[outside] *= 2  # farther out than all that the attacker has
    lowest, highest = [], []
    honest = linear.logits

    def logits(batch):
        lowest.append(float(batch["image"].min()))
        highest.append(float(batch["image"].max()))
        return honest(batch)

    linear.logits = logits
    bounds = find_starts(linear, split, 3).bounds
    assert bounds == (float(pool.min()), float(pool.max()))
    assert bool((measured(linear, split, ("holdout",))["holdout"].boundary_distance > 0).any())
    assert min(lowest) >= float(split.images.min())
    assert max(highest) <= float(split.images.max())


def test_nothing_is_left_behind(linear, split):
    linear.train()
    before, weights = torch.get_rng_state(), [p.clone() for p in linear.parameters()]
    seen, honest = [], linear.logits
    linear.logits = lambda batch: (seen.append((linear.training, torch.is_grad_enabled())), honest(batch))[1]
    measured(linear, split)
    assert set(seen) == {(False, False)}
    assert linear.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(linear.parameters(), weights, strict=True))


def test_nobody_gets_the_search_unasked(linear, diffusion):
    assert "boundary_distance" not in available_signals(linear)
    assert available_signals(linear, costly=True) == available_signals(linear) | FIELD
    assert available_signals(diffusion, costly=True) == available_signals(diffusion)
    assert "boundary_distance" not in {attack.name for attack in choose_attacks(None, linear)}
    assert [attack.name for attack in choose_attacks(["boundary_distance"], linear)] == ["boundary_distance"]
    assert "only where an attack is asked for by name" in str(missing_signals(linear, FIELD, "some"))


def test_modules_and_pictures_that_cannot_be_searched_are_refused(linear, diffusion, split):
    with pytest.raises(MissingProtocolError, match=r"An attack needs the predicted classes of `ToyDiffusion`.*logits"):
        measured(diffusion, split)
    honest = linear.logits
    linear.logits = lambda batch: honest(batch)[:, 0]
    with pytest.raises(InputError, match=r"`ToyClassifier.logits` returned \(10,\)"):
        measured(linear, split)
    linear.logits = lambda batch: honest(batch).mean(0, keepdim=True)
    with pytest.raises(InputError, match=r"returned \(1, 3\) for 10 pictures; .* one row a record"):
        measured(linear, split)
    linear.logits = lambda batch: honest(batch) * 0
    with pytest.raises(InputError, match="predicts class 0 for all 10 pictures of the role `attack_nonmember`"):
        measured(linear, split)
    linear.logits = honest
    with pytest.raises(InputError, match="A budget of 5 queries ends before the first bisection"):
        measured(linear, split, budget=5)
    starts = find_starts(linear, split, 0)
    images, labels = pictures(split, "holdout")
    ids = tuple(str(i) for i in range(10))
    for wrong, said in (((images * 255).byte(), "torch.uint8"), (images[..., :4], r"\(3, 8, 4\) where others are of")):
        with pytest.raises(InputError, match=said):
            group_distances(linear, (wrong, labels), ids, starts, seed=0, queries=60)
    with pytest.raises(InputError, match="10 records has 10 pictures and 9 labels"):
        group_distances(linear, (images, labels[:9]), ids, starts, seed=0, queries=60)


class Memoriser(L.LightningModule):
    """Learns by heart which of noisy pictures has which label."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(36, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
        )

    def logits(self, batch):
        return self.net(images_of(batch))


def noisy_split(seed):
    """Pictures that are lighter in one class, a fifth of the labels drawn anew; the seed divides them."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=g)
    images = (0.4 + 0.2 * labels.view(-1, 1, 1, 1) + 0.2 * torch.randn(400, 1, 6, 6, generator=g)).clamp(0, 1)
    labels = torch.where(torch.rand(400, generator=g) < 0.2, 1 - labels, labels)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed)).tolist()
    roles = {"eval_member": order[:100], "holdout": order[100:200], "attack_nonmember": order[200:300]}
    return SimpleNamespace(
        roles=roles,
        record_ids=[str(i) for i in range(400)],
        loader=lambda role, size: DataLoader(TensorDataset(images[roles[role]], labels[roles[role]]), size or 50),
    )


def interval(module, split):
    roles = ("eval_member", "holdout")
    signals = compute_signals(module, split, roles, FIELD, boundary_queries=100)
    scores = [BoundaryDistance().score(signals[role]) for role in roles]
    return membership_metrics(*scores, threshold=0.0, bootstrap=200, seed=0)["auroc"]


def test_overfitting_is_found_and_permuted_membership_is_not():
    split = noisy_split(0)
    images, labels = (torch.cat(part) for part in zip(*split.loader("eval_member", 100), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Memoriser()
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(module.net(images), labels).backward()
            optimizer.step()
    assert interval(module, split).low > 0.5
    # the same model and records under roles it was not trained by: four AUROCs of 0.5 with a standard deviation of 0.05
    permuted = [interval(module, noisy_split(seed)).value for seed in (1, 2, 3, 4)]
    assert abs(sum(permuted) / 4 - 0.5) < 0.05


def test_an_audit_by_name_scores_by_the_distance(linear, split, monkeypatch):
    result = audit_membership(linear, split, ["boundary_distance"], seed=3, bootstrap=0)[0]
    images, labels = pictures(split, "holdout")
    scores = torch.tensor(result.extra["nonmember_scores"]) * result.extra["sign"]
    assert torch.equal(scores == 0, linear.net(images).argmax(1) != labels)
    assert bool((scores >= 0).all())


def searched():
    """Distances and their cost, and how many pictures this rank has asked about."""
    from types import SimpleNamespace
    from unittest import mock

    import lightning.pytorch as L
    import torch

    from lightning_privacy.callbacks.audits import boundary_signals
    from lightning_privacy.callbacks.audits.signals import compute_signals

    g = torch.Generator().manual_seed(0)
    images, weight, asked, costs = torch.rand(48, 12, generator=g), torch.randn(3, 12, generator=g), [], {}
    weight -= weight.mean(1, keepdim=True)
    roles = {"eval_member": list(range(16)), "holdout": list(range(16, 32)), "attack_nonmember": list(range(32, 48))}

    def loader(role, size=None):
        return [(images[part], part % 3) for part in torch.tensor(roles[role]).split(size or 5)]

    split = SimpleNamespace(roles=roles, record_ids=[str(i) for i in range(48)], loader=loader)
    module = L.LightningModule()
    module.logits = lambda batch: (asked.append(len(batch[0])), batch[0] @ weight.T)[1]
    with mock.patch.object(boundary_signals, "_GROUP", 4):
        found = compute_signals(
            module,
            split,
            ("eval_member", "holdout"),
            {"boundary_distance"},
            boundary_queries=60,
            label_queries=costs,
        )
    return [found[r].boundary_distance.tolist() for r in found], [costs[r].tolist() for r in found], sum(asked)


@pytest.mark.dist
def test_two_ranks_share_the_search_and_agree_with_one(rank_pool):
    *alone, all_asked = searched()
    first, second = rank_pool.run(searched)
    assert first[:2] == second[:2] == tuple(alone)
    assert max(first[2], second[2]) < 0.8 * all_asked


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers", "ignore:The number of training")
def test_the_callback_runs_the_attack_where_it_is_named_and_says_what_it_cost(linear, split, trainer_of):
    audit = MembershipAudit(["averaged_loss", "boundary_distance"], boundary_queries=60, bootstrap=20)
    linear.configure_optimizers = lambda: torch.optim.SGD(
        linear.parameters(), lr=0.0
    )  # it predicts every class already
    trainer_of(audit, max_epochs=1).fit(linear, datamodule=split)
    found = {result.attack: result for result in audit.last_results}
    cost = found["boundary_distance"].extra["label_queries"]
    assert cost["budget"] == 60 and 1 <= cost["mean"] <= cost["most"] <= 60
    assert "label_queries" not in found["averaged_loss"].extra
    assert "boundary_distance" not in {attack.name for attack in choose_attacks(None, linear)}
    with pytest.raises(InputError, match="boundary_queries=0"):
        MembershipAudit(boundary_queries=0)
