"""The permutohedral lattice: Gaussian filtering at a cost that grows with the pixels only.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010),
written from the paper. A pixel's feature lies in a simplex with d + 1 corners. Values are splatted
onto the corners, blurred along the lattice's d + 1 directions, and sliced back; only the lattice
points that are a corner of some pixel exist.

Shape letters: P pixels, d feature dimensions, V lattice points in use, S signals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_BLOCK = 256  # pixels; their scratch fits the first cache
_NO_KEY = np.int64(-1) << np.int64(62)  # further out than any point


class PermutohedralLattice:
    """The lattice of a set of features.

    Args:
        features: (d, P) float32, in standard deviations of the Gaussian.

    Attributes:
        points: (P, d + 1) int32, the corners of each pixel's simplex.
        weights: (P, d + 1) float32, barycentric coordinates times ``1 / sqrt(filter(1))`` of the
            pixel, the symmetric normalisation of the dense CRF.
        neighbours: (d + 1, V, 2) int32, by direction; V itself stands for a point that does not
            exist and whose value is zero.
        gain: factor that the blur leaves to be made good.

    Raises:
        ValueError: the features spread too far to be told apart: all five of them by thousands
            of deviations.
    """

    def __init__(self, features: np.ndarray) -> None:
        d, count = features.shape
        scale = basis_scale(d)
        reach = np.array([max(row.max(), -row.min()) for row in features])
        places = lay_out(reach * scale)
        points, weights, keys = _embed(
            np.ascontiguousarray(features, np.float32), tuple(scale.astype(np.float32)), places
        )
        order = np.argsort(keys)  # in this order, neighbours are read one after another
        place = np.empty(len(order) + 1, np.int32)
        place[order + 1] = np.arange(len(order), dtype=np.int32)
        self.points, self.weights = place[points], weights
        self.neighbours = _link(keys[order], places)
        self.gain = np.float32(1 / (1 + 2.0**-d))
        norm = self.filter(np.ones(count, np.float32))
        weights *= (1 / np.sqrt(norm + np.float32(1e-20)))[:, None]

    def filter(self, signal: np.ndarray) -> np.ndarray:
        """Filter a signal by the normalised Gaussian.

        Args:
            signal: (P,) float32.

        Returns:
            (P,) float32.
        """
        return self.gain * _filter(signal, self.points, self.weights, self.neighbours)


def basis_scale(dimensions: int) -> np.ndarray:
    """Return the factors (d,) float64 of the embedding's basis: the blur has unit variance then."""
    d = dimensions
    return np.sqrt(2 / 3) * (d + 1) / np.sqrt([(i + 1) * (i + 2) for i in range(d)])


def lay_out(reach: np.ndarray) -> np.ndarray:
    """Lay out the coordinates of a point in one integer of 63 bits, each with what it needs.

    Args:
        reach: (d,) float64, how far each feature goes, scaled.

    Returns:
        (d,) int64, what one step along each coordinate adds to the integer.
    """
    d = len(reach)
    # coordinate j is the sum of the scaled features from j on, less j times the one before
    farthest = [reach[j:].sum() + (j * reach[j - 1] if j else 0) for j in range(d)]
    # corners and neighbours lie at most d + 1 further each, the nearest point half of it
    bits = [int(np.ceil(far) + 3 * (d + 1)).bit_length() + 1 for far in farthest]
    if sum(bits) > 63:
        raise ValueError(f"features spread too far: a point takes {sum(bits)} bits, not 63")
    return np.array([1 << sum(bits[j + 1 :]) for j in range(d)], np.int64)


@njit(cache=True, boundscheck=False)
def blur(  # pragma: no cover - compiled
    values: np.ndarray,
    neighbours: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    lanes: tuple[np.float32, ...],
) -> np.ndarray:
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
def _filter(  # pragma: no cover - compiled
    signal: np.ndarray, points: np.ndarray, weights: np.ndarray, neighbours: np.ndarray
) -> np.ndarray:
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
def _embed(  # pragma: no cover - compiled
    features: np.ndarray, scale: tuple[np.float32, ...], places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find corners and barycentric coordinates of every pixel, and the corners' keys.

    Pixels go in blocks: first the arithmetic, coordinate by coordinate so that it vectorises,
    then the look-ups, which do not wait for one another.
    """
    d = len(scale)  # of a tuple: known to the compiler
    count = features.shape[1]
    points = np.empty((count, d + 1), np.int32)
    weights = np.empty((count, d + 1), np.float32)
    corners = points.reshape(-1)
    log_size = 12  # of the hash table
    while 1 << log_size < 2 * count:  # rarely too small: there are fewer points than pixels
        log_size += 1
    table = np.zeros(1 << log_size, np.int32)  # 0 is a free slot
    keys = np.empty((1 << log_size) // 2, np.int64)
    keys[0] = _NO_KEY
    used = 1

    residual = np.empty((d + 1, _BLOCK), np.float32)
    nearest = np.empty((d + 1, _BLOCK), np.int32)
    rank = np.empty((d + 1, _BLOCK), np.int32)
    key = np.empty(_BLOCK * (d + 1), np.int64)
    missing = np.empty(_BLOCK * (d + 1), np.int64)
    # packed: one in every coordinate, and d + 1 in one; the last coordinate follows from the others
    ones = places.sum()
    leap = np.zeros(d + 1, np.int64)
    leap[:d] = (d + 1) * places
    sorted_residual = np.empty(d + 1, np.float32)  # by rank
    sorted_leap = np.empty(d + 1, np.int64)
    for first in range(0, count, _BLOCK):
        block = features[:, first : first + _BLOCK]
        _find_simplices(block, scale, residual, nearest, rank)
        for b in range(block.shape[1]):
            packed = np.int64(0)
            for i in range(d):
                packed += nearest[i, b] * places[i]
            for i in range(d + 1):
                sorted_residual[rank[i, b]] = residual[i, b]
                sorted_leap[rank[i, b]] = leap[i]
            # the k-th corner has the d + 1 - k lowest ranks k above and the others d + 1 - k below
            weights[first + b, 0] = 1 + sorted_residual[d] - sorted_residual[0]
            key[b * (d + 1)] = packed
            for k in range(1, d + 1):
                weights[first + b, k] = sorted_residual[d - k] - sorted_residual[d + 1 - k]
                packed += ones - sorted_leap[d + 1 - k]
                key[b * (d + 1) + k] = packed
        # first where the hash points, all at once; then, one by one, what was not there
        start, wanted = first * (d + 1), block.shape[1] * (d + 1)
        for q in range(wanted):
            corners[start + q] = table[_hash(key[q], log_size)]
        misses = 0
        for q in range(wanted):
            missing[misses] = q
            misses += int(keys[corners[start + q]] != key[q])
        for q in missing[:misses]:
            slot = _find(table, keys, key[q], log_size)
            if table[slot] == 0:
                if used == len(keys):
                    log_size += 1
                    keys = np.concatenate((keys, np.empty(used, np.int64)))
                    table = np.zeros(1 << log_size, np.int32)
                    for v in range(1, used):
                        table[_find(table, keys, keys[v], log_size)] = v
                    slot = _find(table, keys, key[q], log_size)
                keys[used] = key[q]
                table[slot] = used
                used += 1
            corners[start + q] = table[slot]
    return points, weights, keys[1:used]  # points count from 1


@njit(cache=True, boundscheck=False)
def _find_simplices(  # pragma: no cover - compiled
    features: np.ndarray,  # (d, B)
    scale: tuple[np.float32, ...],
    residual: np.ndarray,  # all three are written, (d + 1, _BLOCK)
    nearest: np.ndarray,
    rank: np.ndarray,
) -> None:
    """Find the nearest remainder-0 point, the distance from it and that distance's rank."""
    d, count = features.shape
    inverse = np.float32(1 / (d + 1))
    total = np.zeros(count, np.float32)
    for j in range(d, 0, -1):  # onto the hyperplane of coordinate sum zero
        row, out, factor = features[j - 1], residual[j], scale[j - 1]
        for b in range(count):
            value = row[b] * factor
            out[b] = total[b] - np.float32(j) * value
            total[b] += value
    residual[0, :count] = total
    # the nearest point whose coordinates are all multiples of d + 1
    excess = np.zeros(count, np.int32)
    for i in range(d + 1):
        position, near = residual[i], nearest[i]
        for b in range(count):
            steps = np.int32(np.floor(position[b] * inverse + np.float32(0.5)))
            near[b] = steps * np.int32(d + 1)
            excess[b] += steps
            position[b] -= np.float32(near[b])
    # the order of the residuals names the simplex around that point
    for i in range(d + 1):
        rank[i, :count] = excess
    for i in range(d):
        for j in range(i + 1, d + 1):
            left, right, left_rank, right_rank = residual[i], residual[j], rank[i], rank[j]
            for b in range(count):
                is_smaller = np.int32(left[b] < right[b])
                left_rank[b] += is_smaller
                right_rank[b] += np.int32(1) - is_smaller
    for i in range(d + 1):
        position, near, order = residual[i], nearest[i], rank[i]
        for b in range(count):
            wrap = np.int32(d + 1) * (np.int32(order[b] < 0) - np.int32(order[b] > d))
            order[b] += wrap
            near[b] += wrap
            position[b] = (position[b] - np.float32(wrap)) * inverse


@njit(cache=True, boundscheck=False, inline="always")
def _hash(key: Any, log_size: int) -> Any:  # pragma: no cover - compiled
    """Hash a key as Fibonacci: the highest bits of a product, which all coordinates change."""
    product = key * np.int64(-7046029254386353131)
    return (product >> (64 - log_size)) & ((1 << log_size) - 1)


@njit(cache=True, boundscheck=False)
def _find(  # pragma: no cover - compiled
    table: np.ndarray, keys: np.ndarray, key: Any, log_size: int
) -> Any:
    """Find the slot that holds ``key``, or the free one that is to hold it."""
    slot = _hash(key, log_size)
    while table[slot] != 0 and keys[table[slot]] != key:
        slot = (slot + 1) & (len(table) - 1)
    return slot


@njit(cache=True, boundscheck=False)
def _link(keys: np.ndarray, places: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """Find both neighbours of every lattice point in every direction; ``keys`` rise."""
    count, d = len(keys), len(places)
    neighbours = np.full((d + 1, count, 2), count, np.int32)
    for j in range(d + 1):
        # a step along direction j: -1 in every coordinate but d in the j-th
        step = np.int64(0)
        for i in range(d):
            step += places[i] * (d if i == j else -1)
        u = 0
        for v in range(count):
            while u < count and keys[u] < keys[v] + step:
                u += 1
            if u < count and keys[u] == keys[v] + step:
                neighbours[j, v, 0] = u
                neighbours[j, u, 1] = v
    return neighbours
