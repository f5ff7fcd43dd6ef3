"""The permutohedral lattice: Gaussian filtering at a cost that grows with the pixels only.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010),
written from the paper. A pixel's feature lies in a simplex with d + 1 corners. Values are splatted
onto the corners, blurred along the lattice's d + 1 directions, and sliced back; only the lattice
points that are a corner of some pixel exist.

Shape letters: P pixels, d feature dimensions, V lattice points in use, S signals.
"""

from __future__ import annotations

import numpy as np
from numba import njit


class PermutohedralLattice:
    """The lattice of a set of features.

    Args:
        features: (P, d) float32, in standard deviations of the Gaussian.

    Attributes:
        points: (P, d + 1) int32, the corners of each pixel's simplex.
        weights: (P, d + 1) float32, barycentric coordinates times ``1 / sqrt(filter(1))`` of the
            pixel, the symmetric normalisation of the dense CRF.
        neighbours: (d + 1, V, 2) int32, by direction; V itself stands for a point that does not
            exist and whose value is zero.
        gain: factor that the blur leaves to be made good.

    Raises:
        ValueError: the features spread too far to be told apart (thousands of deviations).
    """

    def __init__(self, features: np.ndarray) -> None:
        d = features.shape[1]
        # of the embedding's basis: the blur then has unit variance
        scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt([(i + 1) * (i + 2) for i in range(d)])
        bits = 63 // d  # of one coordinate in a packed key
        reach = np.array([max(column.max(), -column.min()) for column in features.T])
        if not d * (reach @ scale) + d + 1 < 1 << (bits - 1):
            raise ValueError(f"features reach {reach.max()} standard deviations, too far")
        points, weights, keys = _embed(
            np.ascontiguousarray(features, np.float32), tuple(np.float32(scale)), bits
        )
        order = np.argsort(keys)  # in this order, neighbours are read one after another
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        self.points, self.weights = place[points], weights
        self.neighbours = _link(keys[order], d, bits)
        self.gain = np.float32(1 / (1 + 2.0**-d))
        norm = self.filter(np.ones(len(features), np.float32))
        self.weights = weights / np.sqrt(norm + np.float32(1e-20))[:, None]

    def filter(self, signal: np.ndarray) -> np.ndarray:
        """The Gaussian filter of a signal (P,) float32, normalised; gives (P,) float32."""
        return self.gain * _filter(signal, self.points, self.weights, self.neighbours)


@njit(cache=True, boundscheck=False)
def blur(values, neighbours, first, second, lanes):  # noqa: ANN001, ANN201 # pragma: no cover
    """Blur values on the lattice points along every direction in turn.

    Args:
        values: (V + 1, S) float32; the last row is zero and stays so.
        neighbours: of the lattice.
        first: scratch like ``values``, its last row zero.
        second: the same.
        lanes: a tuple of S numbers: its length is known to the compiler.

    Returns:
        ``first`` or ``second``, whichever holds the result.
    """
    source, target = values, first
    for j in range(len(neighbours)):
        if j:
            source, target = (first, second) if j % 2 else (second, first)
        for v in range(neighbours.shape[1]):
            before, after = neighbours[j, v, 0], neighbours[j, v, 1]
            for s in range(len(lanes)):
                target[v, s] = source[v, s] + np.float32(0.5) * (
                    source[before, s] + source[after, s]
                )
    return target


@njit(cache=True, boundscheck=False)
def _filter(signal, points, weights, neighbours):  # noqa: ANN001, ANN202 # pragma: no cover
    """Splat, blur, slice."""
    values = np.zeros((neighbours.shape[1] + 1, 1), np.float32)
    for p in range(len(points)):
        for k in range(points.shape[1]):
            values[points[p, k], 0] += weights[p, k] * signal[p]
    lanes = (np.float32(0),)
    values = blur(values, neighbours, np.zeros_like(values), np.zeros_like(values), lanes)
    out = np.zeros(len(points), np.float32)
    for p in range(len(points)):
        for k in range(points.shape[1]):
            out[p] += weights[p, k] * values[points[p, k], 0]
    return out


@njit(cache=True, boundscheck=False)
def _embed(features, scale, bits):  # noqa: ANN001, ANN202 # pragma: no cover - compiled
    """Corners and barycentric coordinates of every pixel, and the corners' packed coordinates."""
    count = len(features)
    d = len(scale)  # of a tuple: known to the compiler
    points = np.empty((count, d + 1), np.int32)
    weights = np.empty((count, d + 1), np.float32)
    size = 1 << 12  # of the hash table
    while size < 2 * count:  # rarely too small: there are about as many points as pixels
        size *= 2
    table = np.full(size, -1, np.int32)
    keys = np.empty(size // 2, np.int64)
    used = 0

    position = np.empty(d + 1, np.float32)
    nearest = np.empty(d + 1, np.int32)
    rank = np.empty(d + 1, np.int32)
    last_nearest = np.zeros(d + 1, np.int32)
    last_rank = np.full(d + 1, -1, np.int32)
    share = np.empty(d + 2, np.float32)
    inverse = np.float32(1 / (d + 1))
    for p in range(count):
        # onto the hyperplane of coordinate sum zero
        total = np.float32(0)
        for j in range(d, 0, -1):
            value = features[p, j - 1] * scale[j - 1]
            position[j] = total - j * value
            total += value
        position[0] = total
        # the nearest point whose coordinates are all multiples of d + 1
        excess = 0
        for i in range(d + 1):
            steps = np.int32(np.floor(position[i] * inverse + np.float32(0.5)))
            nearest[i] = steps * (d + 1)
            excess += steps
        # the order of the residuals names the simplex around that point
        for i in range(d + 1):
            rank[i] = excess
        for i in range(d):
            residual = position[i] - nearest[i]
            for j in range(i + 1, d + 1):
                is_smaller = np.int32(residual < position[j] - nearest[j])
                rank[i] += is_smaller
                rank[j] += 1 - is_smaller
        for i in range(d + 1):
            if rank[i] < 0:
                rank[i] += d + 1
                nearest[i] += d + 1
            elif rank[i] > d:
                rank[i] -= d + 1
                nearest[i] -= d + 1
        # barycentric coordinates
        share[:] = 0
        is_same = True
        for i in range(d + 1):
            value = (position[i] - nearest[i]) * inverse
            share[d - rank[i]] += value
            share[d + 1 - rank[i]] -= value
            is_same = is_same and nearest[i] == last_nearest[i] and rank[i] == last_rank[i]
        share[0] += 1 + share[d + 1]
        for k in range(d + 1):
            weights[p, k] = share[k]
        if is_same:  # neighbouring pixels often share their simplex
            for k in range(d + 1):
                points[p, k] = points[p - 1, k]
            continue
        for i in range(d + 1):
            last_nearest[i] = nearest[i]
            last_rank[i] = rank[i]
        for k in range(d + 1):
            key = np.int64(0)
            for i in range(d):  # the last coordinate follows from the others
                key = (key << bits) + nearest[i] + (k if rank[i] <= d - k else k - (d + 1))
            slot = _find(table, keys, key)
            if table[slot] < 0:
                if used == len(keys):
                    size *= 2
                    keys = np.concatenate((keys, np.empty(size // 2 - used, np.int64)))
                    table = np.full(size, -1, np.int32)
                    for v in range(used):
                        table[_find(table, keys, keys[v])] = v
                    slot = _find(table, keys, key)
                keys[used] = key
                table[slot] = used
                used += 1
            points[p, k] = table[slot]
    return points, weights, keys[:used]


@njit(cache=True, boundscheck=False)
def _find(table, keys, key):  # noqa: ANN001, ANN202 # pragma: no cover - compiled
    """The slot that holds ``key``, or the free one that is to hold it."""
    mask = len(table) - 1
    slot = (key * np.int64(-7046029254386353131) >> np.int64(20)) & mask  # Fibonacci hashing
    while table[slot] >= 0 and keys[table[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, boundscheck=False)
def _link(keys, d, bits):  # noqa: ANN001, ANN202 # pragma: no cover - compiled
    """Both neighbours of every lattice point in every direction; ``keys`` rise."""
    count = len(keys)
    neighbours = np.full((d + 1, count, 2), count, np.int32)
    for j in range(d + 1):
        # a step along direction j: -1 in every coordinate but d in the j-th
        step = np.int64(0)
        for i in range(d):
            step = (step << bits) + (d if i == j else -1)
        u = 0
        for v in range(count):
            while u < count and keys[u] < keys[v] + step:
                u += 1
            if u < count and keys[u] == keys[v] + step:
                neighbours[j, v, 0] = u
                neighbours[j, u, 1] = v
    return neighbours
