"""Distance to the decision boundary from predicted classes alone, for many records at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["BoundarySearch", "Predict", "boundary_distance"]

Predict = Callable[[Float[Tensor, "batch ..."]], Int[Tensor, " batch"]]
"""Returns the predicted class of each picture."""

_HALVINGS = 10  # of a step that overshoots; a thousandth of the first length is below what the next search resolves

_BLOCK = 10_000_000  # numbers in the probes of a group of records: 80 MB in float64
_FEWEST_BISECTIONS = 10  # chosen here: a thousandth, where the paper's rule for large inputs asks for less


@dataclass(frozen=True)
class BoundarySearch:
    """What the search found.

    Args:
        distance: L2 distance from each record to the nearest input found with another predicted class; an upper bound
            of the true one, zero for a record that is misclassified itself.
        queries: Predictions spent on each record, at most the budget; looking once at every possible start is shared
            by all records and not counted.
    """

    distance: Float[Tensor, " records"]
    queries: Int[Tensor, " records"]


def boundary_distance(
    predict: Predict,
    images: Float[Tensor, "records ..."],
    labels: Int[Tensor, " records"],
    *,
    generator: torch.Generator,
    queries: int = 2500,
    starts: Float[Tensor, "pool ..."] | None = None,
    bounds: tuple[float | int, float | int] | None = (0, 1),
    first_directions: int = 100,
    batch_size: int = 1024,
) -> BoundarySearch:
    r"""Return how far each record lies from the nearest input found that the model classifies otherwise.

    HopSkipJump: start at the nearest known picture of another predicted class, and in turn (a) bisect towards the
    record until the boundary, (b) estimate the boundary's normal there from the predicted classes at random points on a
    small sphere, g = mean of (f_b - mean f) u_b with f_b = 1 outside the class and -1 inside, (c) step along g by
    distance / sqrt(t), halved until outside. All records take the same steps together, each with as many directions as
    if every one had needed all halvings: what a record is given does not depend on those searched for beside it.

    Args:
        predict: The model; called without gradients on at most ``batch_size`` pictures.
        images: The records.
        labels: Their true classes.
        generator: Decides the random directions.
        queries: Budget of predictions a record.
        starts: Pictures to start from, those an attacker has; the records themselves where None.
        bounds: Smallest and largest pixel value; None for inputs without bounds.
        first_directions: Directions of the first estimate; that of round t has sqrt(t) times as many.
        batch_size: Pictures a call of ``predict``.

    Raises:
        InputError: the budget does not suffice for one bisection, a picture is out of bounds, or the model predicts the
            record's class for every start.

    Example:
        >>> def predict(x):
        ...     return (x[:, 0] > 0.5).long()
        >>> images = torch.tensor([[0.1, 0.3], [0.9, 0.7]])
        >>> found = boundary_distance(predict, images, torch.tensor([0, 1]), generator=torch.Generator(), queries=800)
        >>> [round(float(d), 2) for d in found.distance]
        [0.4, 0.4]

    Source:
        arXiv 1904.02144 (HopSkipJump); as a membership signal, arXiv 2007.14321.
    """
    dim = images.shape[1:].numel()
    # arXiv 1904.02144: bisect to theta = d^(-3/2) of the segment, and probe at a distance of 1 / d of its length.
    bisections = max(_FEWEST_BISECTIONS, math.ceil(1.5 * math.log2(dim)))
    if queries < 1 + bisections:
        raise InputError(
            f"A budget of {queries} queries ends before the first bisection; for inputs of {dim} numbers give at "
            f"least {1 + bisections}."
        )
    pool = images if starts is None else starts
    for part in (images, pool):
        if bounds is not None and len(part) and not (bounds[0] <= float(part.min()) <= float(part.max()) <= bounds[1]):
            raise InputError(
                f"A picture has values from {float(part.min()):g} to {float(part.max()):g}, outside of the bounds "
                f"{bounds}; pass the bounds of the model's inputs, or None."
            )
    search = _Search(predict, images.shape[1:], images.dtype, queries, bisections, bounds, first_directions, batch_size)
    # Rounds grow slowly: four times the first directions is rarely passed within thousands of queries.
    group = max(1, _BLOCK // (min(queries, 4 * first_directions) * dim))
    with torch.no_grad():
        said = search.ask(pool) if len(images) else labels
        found = [
            search.run(part.reshape(len(part), dim).double(), own.long(), pool.reshape(len(pool), dim), said, generator)
            for part, own in zip(images.split(group), labels.split(group), strict=True)
        ]
    if not len(images):
        return BoundarySearch(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    return BoundarySearch(torch.cat([x.distance for x in found]), torch.cat([x.queries for x in found]))


@dataclass(frozen=True)
class _Search:
    predict: Predict
    shape: torch.Size
    dtype: torch.dtype
    queries: int
    bisections: int
    bounds: tuple[float | int, float | int] | None
    first_directions: int
    batch_size: int

    def ask(self, points: Float[Tensor, "points ..."]) -> Int[Tensor, " points"]:
        parts = points.reshape(-1, *self.shape).to(self.dtype).split(self.batch_size)
        return torch.cat([self.predict(part) for part in parts])

    def clipped(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x if self.bounds is None else x.clamp(*self.bounds)

    def run(
        self, images: Tensor, labels: Tensor, pool: Tensor, said: Tensor, generator: torch.Generator
    ) -> BoundarySearch:
        """Search for a group of records that fits into memory."""
        counter = _Counter(self, labels)
        everyone = torch.arange(len(images), device=images.device)
        active = everyone[~counter.outside(images.unsqueeze(1), everyone).squeeze(1)]
        distance = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        if len(active):
            origin = images[active]
            start = _nearest_start(origin, labels[active], pool.to(origin), said)
            point = _bisect(counter, origin, start, active, self.bisections)
            distance[active] = self._rounds(counter, origin, point, active, generator)
        return BoundarySearch(distance, counter.spent)

    def _rounds(
        self, counter: "_Counter", origin: Tensor, point: Tensor, active: Tensor, generator: torch.Generator
    ) -> Float[Tensor, " active"]:
        """Return the smallest distance of all rounds that the budget allows."""
        length = (point - origin).norm(dim=1)
        best, step = length, 0
        # Not what was spent, which halvings make differ: the record that needs most of them would cut the others short.
        planned, fixed = 1 + self.bisections, _HALVINGS + self.bisections
        while True:
            step += 1
            left = self.queries - planned - fixed
            directions = min(int(self.first_directions * math.sqrt(step)), left)
            planned += directions + fixed
            # With fewer directions a round is noise.
            if directions < min(10, self.first_directions):
                return best
            normal = self._normal(counter, point, length / origin.shape[1], active, directions, generator)
            moved, found = _step(counter, point, normal, length / math.sqrt(step), active, self.clipped)
            point = point.clone()
            point[found] = _bisect(counter, origin[found], moved[found], active[found], self.bisections)
            length = (point - origin).norm(dim=1)
            best = torch.minimum(best, length)

    def _normal(
        self,
        counter: "_Counter",
        point: Tensor,
        radius: Tensor,
        active: Tensor,
        directions: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "active dim"]:
        """Return the estimated direction in which the class is left (arXiv 1904.02144, with the mean subtracted)."""
        # Drawn for records that are misclassified too, so that a record's directions depend on its place alone.
        shape = (len(counter.labels), directions, point.shape[1])
        u = torch.randn(*shape, generator=generator, device=generator.device).to(point)[active]
        u /= u.norm(dim=2, keepdim=True)
        probes = self.clipped(point.unsqueeze(1) + radius.view(-1, 1, 1) * u)
        said = counter.outside(probes, active).double() * 2 - 1
        # Clipping shortens some probes: average the moves that were really made.
        moves = probes - point.unsqueeze(1)
        centred = said - said.mean(1, keepdim=True)
        alike = centred.abs().amax(1, keepdim=True) == 0
        normal = (torch.where(alike, said, centred).unsqueeze(2) * moves).mean(1)
        return normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-300)


class _Counter:
    """Asks the model whether inputs fall outside the true class, and counts what each record has spent."""

    def __init__(self, search: _Search, labels: Int[Tensor, " records"]) -> None:
        self.search, self.labels, self.spent = search, labels, torch.zeros_like(labels)

    def outside(
        self, points: Float[Tensor, "some points dim"], records: Int[Tensor, " some"]
    ) -> Bool[Tensor, "some points"]:
        self.spent[records] += points.shape[1]
        return self.search.ask(points.flatten(0, 1)).view(-1, points.shape[1]) != self.labels[records].unsqueeze(1)


def _nearest_start(origin: Tensor, labels: Tensor, pool: Tensor, said: Tensor) -> Tensor:
    """Return, for each record, the nearest picture of the pool that the model gives another class than the record's."""
    gap = torch.cdist(origin, pool).masked_fill(said.unsqueeze(0) == labels.unsqueeze(1), torch.inf)
    nearest = gap.min(1)
    if not nearest.values.isfinite().all():
        missing = sorted({int(x) for x in labels[~nearest.values.isfinite()]})
        raise InputError(
            f"The model predicts class {missing[0]} for every picture to start from, so no boundary of that class is "
            "known; pass `starts` with pictures of other classes."
        )
    return pool[nearest.indices]


def _bisect(counter: _Counter, origin: Tensor, outside: Tensor, records: Tensor, steps: int) -> Tensor:
    """Return the last point outside of the class on the way from outside to the record."""
    if not len(records):
        return outside
    low, high = (torch.full((len(records), 1), x, dtype=torch.float64, device=origin.device) for x in (0.0, 1.0))
    for _ in range(steps):
        middle = (low + high) / 2
        out = counter.outside((origin + middle * (outside - origin)).unsqueeze(1), records)
        low, high = torch.where(out, low, middle), torch.where(out, middle, high)
    return origin + high * (outside - origin)


def _step(
    counter: _Counter,
    point: Tensor,
    normal: Tensor,
    length: Tensor,
    records: Tensor,
    clipped: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return points a step along the normal that lie outside of the class, and the rows for which one was found."""
    moved, open_rows = point.clone(), torch.arange(len(records), device=point.device)
    for halving in range(_HALVINGS):
        trial = clipped(point[open_rows] + (length[open_rows] / 2**halving).unsqueeze(1) * normal[open_rows])
        out = counter.outside(trial.unsqueeze(1), records[open_rows]).squeeze(1)
        moved[open_rows[out]] = trial[out]
        open_rows = open_rows[~out]
        if not len(open_rows):
            break
    found = torch.ones(len(records), dtype=torch.bool, device=point.device)
    found[open_rows] = False
    return moved, found
