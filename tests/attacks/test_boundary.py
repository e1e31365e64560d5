import pytest
import torch

from lightning_privacy.attacks.membership.boundary import boundary_distance
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import auroc


def hyperplane(dim, seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(dim, generator=g)
    return w / w.norm(), g


def search(predict, images, labels, **settings):
    return boundary_distance(predict, images, labels, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (3, 8, 8)])
def test_distance_to_a_hyperplane_is_found(shape):
    dim = torch.Size(shape).numel()
    w, g = hyperplane(dim, 0)
    images = torch.randn(24, *shape, generator=g)

    def predict(x):
        return (x.flatten(1) @ w > 0.1).long()

    true = (images.flatten(1) @ w - 0.1).abs().double()
    found = search(predict, images, predict(images), queries=4000, bounds=None)
    ratio = found.distance / true
    assert float(ratio.min()) > 1 - 1e-5
    assert float(ratio.median()) < 1.08
    assert float(ratio.max()) < 1.3
    assert int(found.queries.max()) <= 4000
    fewer = search(predict, images, predict(images), queries=300, bounds=None)
    assert bool((fewer.distance >= found.distance - 1e-9).double().mean() > 0.9)
    assert int(fewer.queries.max()) <= 300


def test_the_nearest_of_several_boundaries_counts():
    corners = torch.eye(3)

    def predict(x):
        return (x @ corners).argmax(1)

    images = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.7], [0.3, 0.1, 0.6]])
    # between classes i and j the boundary is x_i = x_j, at the distance (x_i - x_j) / sqrt 2
    expected = torch.tensor([0.4, 0.1, 0.3]) / 2**0.5
    found = search(predict, images, torch.tensor([0, 1, 2]), queries=4000)
    assert found.distance.tolist() == pytest.approx(expected.tolist(), rel=0.03)


def test_misclassified_records_lie_at_zero_and_cost_one_query():
    def predict(x):
        return (x[:, 0] > 0.5).long()

    images = torch.tensor([[0.2, 0.2], [0.8, 0.1]])
    found = search(predict, images, torch.tensor([1, 1]), queries=200)
    assert found.distance[0] == 0
    assert found.queries.tolist()[0] == 1
    assert found.distance[1] > 0
    everyone_wrong = search(predict, images, torch.tensor([1, 0]), queries=200)
    assert everyone_wrong.distance.tolist() == [0, 0]
    assert everyone_wrong.queries.tolist() == [1, 1]


def test_the_queries_reported_are_those_made():
    made = 0

    def predict(x):
        nonlocal made
        made += len(x)
        return (x.flatten(1).sum(1) > 2).long()

    images = torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = predict(images)
    made = 0
    found = search(predict, images, labels, queries=500, batch_size=64)
    # beside the records' own queries every start is looked at once
    assert made == int(found.queries.sum()) + len(images)


def test_points_stay_within_the_bounds():
    def predict(x):
        assert bool(((x >= 0) & (x <= 1)).all())
        return (x[:, 0] + x[:, 1] > 1.9).long()

    images = torch.tensor([[0.9, 0.1], [1.0, 1.0]])
    found = search(predict, images, torch.tensor([0, 1]), queries=3000)
    # unbounded the foot would be at 0.636; within the square the nearest point is (1, 0.9), or the segment's end there
    assert float(found.distance[0]) == pytest.approx(0.65**0.5, abs=0.03)


def test_groups_that_fit_into_memory_find_what_one_group_finds(monkeypatch):
    def predict(x):
        return (x[:, 0] > 0.5).long()

    images = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("lightning_privacy.attacks.membership.boundary._BLOCK", 2 * 400 * 2)
    found = search(predict, images, predict(images), queries=1500)
    assert found.distance.tolist() == pytest.approx((images[:, 0] - 0.5).abs().tolist(), rel=0.05)
    assert found.queries.shape == (9,)
    none = search(predict, images[:0], predict(images)[:0])
    assert none.distance.shape == (0,)


def test_what_a_record_is_given_does_not_depend_on_those_beside_it():
    # of the companions beside it one lies by an island so small that steps overshoot it and are halved
    def predict(x):
        far = (x[:, 0] > 5).long()
        smooth = (x[:, 1] > 0.5).long()
        islands = ((x[:, 1:] - 0.9).abs().amax(1) < 0.02).long()
        return torch.where(x[:, 0] > 5, far + islands + 1, smooth)

    own = torch.tensor([[0.3, 0.1, 0.2]])
    starts = torch.tensor([[0.3, 0.9, 0.2], [9.0, 0.9, 0.9], [9.0, 0.1, 0.1]])
    beside = {
        "another": ([0.2, 0.2, 0.4], 0),
        "by an island": ([9.0, 0.1, 0.2], 2),
        "misclassified": ([0.1, 0.2, 0.1], 3),
    }
    found = {}
    for name, (picture, label) in beside.items():
        images = torch.cat([own, torch.tensor([picture])])
        found[name] = search(predict, images, torch.tensor([0, label]), queries=700, starts=starts, bounds=None)
    halved = found["by an island"].queries[1] - found["another"].queries[1]
    assert int(halved) > 0 and int(found["misclassified"].queries[1]) == 1
    assert len({(float(x.distance[0]), int(x.queries[0])) for x in found.values()}) == 1


def test_starts_of_the_attacker_are_used():
    def predict(x):
        return (x[:, 0] > 0.5).long()

    images = torch.tensor([[0.1, 0.0], [0.2, 0.0]])
    with pytest.raises(InputError, match="predicts class 0 for every picture"):
        search(predict, images, torch.tensor([0, 0]))
    found = search(predict, images, torch.tensor([0, 0]), starts=torch.tensor([[1.0, 1.0]]))
    assert found.distance.tolist() == pytest.approx([0.4, 0.3], rel=0.03)


def test_budget_and_bounds_are_checked():
    images = torch.tensor([[0.1, 2.0]])
    with pytest.raises(InputError, match="outside of the bounds"):
        search(lambda x: torch.zeros(len(x), dtype=torch.long), images, torch.tensor([0]))
    with pytest.raises(InputError, match="first bisection"):
        search(lambda x: torch.zeros(len(x), dtype=torch.long), images, torch.tensor([0]), queries=5)


def test_members_of_the_overfitted_digits_lie_farther_from_the_boundary(overfitted_digits):
    digits = overfitted_digits
    distances = []
    for role in ("member", "holdout"):
        rows = digits.rows[role][:100]
        distances.append(search(digits.predict, digits.images[rows], digits.labels[rows], queries=500).distance)
    assert auroc(*distances) > 0.65
