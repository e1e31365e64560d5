"""Where shuffled values lie beside each other, read out of what a network computes from them."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from torch import Tensor

__all__ = ["plane_layout"]

_NEIGHBOURS = 12  # chosen here: about the pixels around one
_LANDMARKS = 200  # chosen here: distances to these place all others


def plane_layout(
    columns: Float[Tensor, "values features"], shared: int, seed: int
) -> tuple[Float[Tensor, "values 2"], Bool[Tensor, " values"]]:
    """Lay out values in a plane, so that those with similar columns lie close together.

    Neighbours in a picture have similar values, and so a network that was trained on pictures weighs them alike. Two values
    are taken for neighbours if each is among the other's nearest by cosine and they have several of these in common; how far
    apart others are is counted along such neighbours. Rotation, reflection and smooth distortion are left open.

    Args:
        columns: A row of weights a value, in any order.
        shared: Neighbours that two neighbours must have in common, 0 to 12: more leave fewer false ones, and fewer values.
        seed: Of the landmarks.

    Returns:
        Coordinates with mean 0 and standard deviation 1 along each axis, and which values could be placed; coordinates of the
        others are 0.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
        >>> places = torch.stack([y.flatten(), x.flatten()], 1)
        >>> bumps = torch.exp(-torch.cdist(places, places).square() / 8)
        >>> found, placed = plane_layout(bumps, shared=2, seed=0)
        >>> bool(placed.all()), bool((torch.pdist(found) * 12**0.5 - torch.pdist(places)).abs().median() < 8)
        (True, True)

    Source:
        Neighbours after Jarvis and Patrick, IEEE Trans. Computers 1973; distances and layout after Tenenbaum, de Silva and
        Langford, Science 2000, with the landmarks of de Silva and Tenenbaum, NIPS 2002.
    """
    edges = _neighbours(columns, shared)
    count = len(columns)
    _, part = connected_components(edges, directed=False)
    inside = np.flatnonzero(part == np.bincount(part).argmax())
    landmarks = np.random.default_rng(seed).choice(len(inside), min(_LANDMARKS, len(inside)), replace=False)
    squares = dijkstra(edges[inside][:, inside], indices=landmarks, unweighted=True) ** 2
    among = squares[:, landmarks]
    centred = np.eye(len(landmarks)) - 1 / len(landmarks)
    _, axes = np.linalg.eigh(-0.5 * centred @ among @ centred)
    found = -0.5 * (squares - among.mean(1)[:, None]).T @ axes[:, -2:]  # of the two largest, up to a scale each
    found = (found - found.mean(0)) / np.maximum(found.std(0), 1e-12)
    places, placed = np.zeros((count, 2)), np.zeros(count, dtype=bool)
    places[inside], placed[inside] = found, True
    places, placed = _filled(places, placed, _neighbours(columns, 0))
    return torch.from_numpy(places).to(columns), torch.from_numpy(placed)


def _neighbours(columns: Tensor, shared: int) -> csr_matrix:
    """Return which values are neighbours of which, as a symmetric matrix of ones."""
    unit = torch.nn.functional.normalize(columns.detach().cpu().float(), dim=1)
    count, k = len(unit), min(_NEIGHBOURS, len(unit) - 1)
    # the nearest of each is itself
    nearest = torch.cat([(part @ unit.T).topk(k + 1, dim=1).indices[:, 1:] for part in unit.split(1024)])
    rows = torch.arange(count)[:, None].expand_as(nearest).flatten()
    ones = np.ones(count * k)
    lists = csr_matrix((ones, (rows.numpy(), nearest.flatten().numpy())), shape=(count, count))
    mutual = lists.multiply(lists.T).tocsr()
    if shared:
        mutual = mutual.multiply((lists @ lists.T) >= shared).tocsr()
    mutual.eliminate_zeros()
    return mutual


def _filled(places: np.ndarray, placed: np.ndarray, edges: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Place who is left in the middle of its placed neighbours, as long as someone has any."""
    while True:
        beside = edges @ placed.astype(float)
        fresh = ~placed & (beside > 0)
        if not fresh.any():
            return places, placed
        places[fresh] = (edges @ np.where(placed[:, None], places, 0))[fresh] / beside[fresh, None]
        placed = placed | fresh
