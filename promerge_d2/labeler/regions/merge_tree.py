"""Proposals of all scales: merge every patch with its neighbours, the most alike first (our own).

With point prompts, a threshold ``tau_b`` and a number of prompts decide what can be found. Here
every patch is a prompt, and two neighbouring regions merge when they are the most alike of all:
``mean(a) @ mean(b)``, the mean cosine of the pairs between them (average linkage). The tree of
these merges holds the components of every threshold at once; no number has to be chosen.

Shape letters: C channels, H and W rows and columns of the patch grid, N = H * W patches, M masks.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numba import njit


def merge_tree(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge 4-connected patches until one region is left.

    Args:
        unit: (C, H, W) float32 normalised features.

    Returns:
        Children (N - 1, 2) int64 of each merge, in the order of merging: below N a patch (row by
        row), else N plus the number of an earlier merge. Similarity (N - 1,) float32 of the two
        at that moment.
    """
    _, height, width = unit.shape
    patches = np.ascontiguousarray(unit.reshape(len(unit), -1).T, np.float32)
    return _merge(patches, height, width)


def tree_masks(
    children: np.ndarray, height: int, width: int, min_patches: int, max_share: float
) -> np.ndarray:
    """Return the regions of a tree as masks.

    Args:
        children: (N - 1, 2), of ``merge_tree``.
        height: rows of the grid.
        width: its columns.
        min_patches: smaller regions are left out.
        max_share: regions of more than this share of the grid are left out.

    Returns:
        (M, H, W) bool in the order of merging.
    """
    masks = _draw_regions(*leaf_ranges(children), min_patches, max_share * height * width)
    return masks.reshape(-1, height, width)


@njit(cache=True)
def leaf_ranges(
    children: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Order the patches so that each region of a tree is a range of them.

    Args:
        children: (N - 1, 2), of ``merge_tree``.

    Returns:
        The patches depth first (N,) int64, and for each patch and then for each merge where its
        patches begin and end among them, (2 * N - 1, 2) int64.
    """
    count = len(children) + 1
    area = np.ones(2 * count - 1, np.int64)
    for merge in range(count - 1):
        area[count + merge] = area[children[merge, 0]] + area[children[merge, 1]]
    ranges = np.zeros((2 * count - 1, 2), np.int64)
    for merge in range(count - 2, -1, -1):
        left, right = children[merge]
        ranges[left, 0] = ranges[count + merge, 0]
        ranges[right, 0] = ranges[count + merge, 0] + area[left]
    ranges[:, 1] = ranges[:, 0] + area
    order = np.empty(count, np.int64)
    order[ranges[:count, 0]] = np.arange(count)
    return order, ranges


@njit(cache=True)
def _draw_regions(  # pragma: no cover - compiled
    order: np.ndarray, ranges: np.ndarray, least: int, most: float
) -> np.ndarray:
    """(M, N) bool: the regions of ``least`` to ``most`` patches, in the order of merging."""
    kept = [
        region
        for region in range(len(order) if least > 1 else 0, len(ranges))
        if least <= ranges[region, 1] - ranges[region, 0] <= most
    ]
    masks = np.zeros((len(kept), len(order)), np.bool_)
    for i, region in enumerate(kept):
        for place in range(ranges[region, 0], ranges[region, 1]):
            masks[i, order[place]] = True
    return masks


@njit(cache=True, boundscheck=False)
def _merge(  # pragma: no cover - compiled
    patches: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``merge_tree`` of (N, C) patches, with a heap of neighbouring pairs."""
    count, channels = patches.shape
    regions = 2 * count - 1
    total = np.zeros((regions, channels), np.float32)  # sum of a region's features
    total[:count] = patches
    area = np.ones(regions, np.int64)
    whole = np.arange(regions)  # the region that this one is now part of, or a step towards it
    first = np.zeros(regions, np.int64)  # a region's neighbours are a range of ``neighbours``
    last = np.zeros(regions, np.int64)
    neighbours = np.empty(16 * count, np.int64)
    seen_by = np.full(regions, -1, np.int64)
    pairs: list[Any] = [(np.float64(0), np.int64(0), np.int64(0)) for _ in range(0)]  # its types
    used = 0
    for p in range(count):
        first[p] = used
        row, column = divmod(p, width)
        for q, is_inside in (
            (p - width, row > 0),
            (p - 1, column > 0),
            (p + 1, column < width - 1),
            (p + width, row < height - 1),
        ):
            if is_inside:
                neighbours[used] = q
                used += 1
                if q > p:
                    heapq.heappush(pairs, (-_mean_product(total, area, p, q), p, q))
        last[p] = used

    children = np.empty((count - 1, 2), np.int64)
    similarity = np.empty(count - 1, np.float32)
    for merge in range(count - 1):
        product, left, right = heapq.heappop(pairs)
        while whole[left] != left or whole[right] != right:  # of regions that are no more
            product, left, right = heapq.heappop(pairs)
        region = count + merge
        children[merge, 0], children[merge, 1] = left, right
        similarity[merge] = -product
        whole[left] = whole[right] = region
        area[region] = area[left] + area[right]
        total[region] = total[left] + total[right]
        wanted = used + last[left] - first[left] + last[right] - first[right]
        if wanted > len(neighbours):
            neighbours = np.concatenate((neighbours, np.empty(wanted, np.int64)))
        first[region] = used
        for part in (left, right):
            for place in range(first[part], last[part]):
                other = neighbours[place]
                while whole[other] != other:
                    whole[other] = whole[whole[other]]
                    other = whole[other]
                if other == region or seen_by[other] == region:
                    continue
                seen_by[other] = region
                neighbours[used] = other
                used += 1
                product = _mean_product(total, area, region, other)
                heapq.heappush(pairs, (-product, other, np.int64(region)))
        last[region] = used
    return children, similarity


@njit(cache=True, boundscheck=False)
def _mean_product(  # pragma: no cover - compiled
    total: np.ndarray, area: np.ndarray, a: int, b: int
) -> float:
    """Multiply two regions' mean features."""
    product = np.float32(0)
    for c in range(total.shape[1]):
        product += total[a, c] * total[b, c]
    return np.float64(product) / (area[a] * area[b])
