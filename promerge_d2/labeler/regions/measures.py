"""What the scores need to know of each mask: sums over it, its outline and its surroundings.

``measure`` and ``most_alike`` are compiled code; ``device`` has their twins in torch.

Shape letters: D components, Q pictures, H and W rows and columns of the patch grid, N = H * W
patches, M masks, F maps of features, T trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from promerge_d2.labeler.regions.merge_tree import leaf_ranges

RING = 5  # patches whose squared distance to a mask is no more are the ring around it
SURROUNDINGS = 18  # likewise, for the agreement
MARGIN = 4  # patches that the surroundings reach beyond a mask's box


@dataclass(frozen=True)
class Measures:
    """Of each mask.

    Attributes:
        area: (M,) patches.
        coherence: (F, M), the product of the mean feature inside with itself.
        across: (F, M), that with the mean feature of the ring.
        agreement: (F, M), the IoU of the mask, in its surroundings, with the patches whose product
            with its mean feature is above the middle between inside and ring.
        outline: (M,) sides of patches along it.
        border: (M,) those of them on the grid's border.
        steps: (M,) the sum of ``colour_steps`` across the others.
        sums: (Q, M) of the pictures, inside.
    """

    area: np.ndarray
    coherence: np.ndarray
    across: np.ndarray
    agreement: np.ndarray
    outline: np.ndarray
    border: np.ndarray
    steps: np.ndarray
    sums: np.ndarray


def measure(
    masks: np.ndarray, maps: list[np.ndarray], steps: np.ndarray, pictures: np.ndarray
) -> Measures:
    """Measure masks.

    Args:
        masks: (M, H, W) bool, none empty.
        maps: F of (D, H, W) float32 unit features.
        steps: (H, W, 2) float64, of ``colour_steps``.
        pictures: (Q, H, W) float64.

    Returns:
        The measures, float64.
    """
    area = np.count_nonzero(masks, axis=(1, 2)).astype(np.float64)
    compared = [
        _compare(masks, np.ascontiguousarray(features.reshape(len(features), -1).T))
        for features in maps
    ]
    coherence, across, agreement = np.array(compared).transpose(1, 0, 2)
    sums = _sums(masks, np.ascontiguousarray(pictures.transpose(1, 2, 0)))
    return Measures(area, coherence, across, agreement, *_outline(masks, steps), sums.T)


def most_alike(masks: np.ndarray, trees: list[np.ndarray]) -> np.ndarray:
    """Find each mask's IoU with the most alike region of each tree.

    Args:
        masks: (M, H, W) bool, none empty.
        trees: T of the children (N - 1, 2) of ``merge_tree``.

    Returns:
        (T, M) float32.
    """
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    return np.stack([_most_alike(flat, tree) for tree in trees])


@njit(cache=True)
def _outline(  # pragma: no cover - compiled
    masks: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow each mask's outline.

    Returns:
        (M,) each: sides of patches along it, those of them on the grid's border, and the sum of
        ``colour_steps`` across the others.
    """
    count, height, width = masks.shape
    outline, border, across = np.zeros(count), np.zeros(count), np.zeros(count)
    for i in range(count):
        mask = masks[i]
        top, bottom, left, right = _box(mask, 1)
        for y in range(top, bottom):
            for x in range(left, right):
                here = mask[y, x]
                if here:
                    border[i] += (y == 0) + (x == 0) + (y == height - 1) + (x == width - 1)
                if x + 1 < width and mask[y, x + 1] != here:
                    outline[i] += 1
                    across[i] += steps[y, x, 0]
                if y + 1 < height and mask[y + 1, x] != here:
                    outline[i] += 1
                    across[i] += steps[y, x, 1]
    return outline + border, border, across


@njit(cache=True)
def _sums(masks: np.ndarray, values: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """(M, Q): the sum of each of the values (H, W, Q) over the patches of each mask."""
    count = len(masks)
    sums = np.zeros((count, values.shape[2]))
    for i in range(count):
        top, bottom, left, right = _box(masks[i], 0)
        for y in range(top, bottom):
            for x in range(left, right):
                if masks[i, y, x]:
                    for q in range(values.shape[2]):
                        sums[i, q] += values[y, x, q]
    return sums


@njit(cache=True, fastmath=True)
def _compare(  # pragma: no cover - compiled
    masks: np.ndarray, patches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each mask with its ring and its surroundings, in one map of features (N, D).

    Returns:
        (M,) each: the product of the mean feature inside with itself, that with the mean feature of
        the ring, and the IoU of ``agreement``.
    """
    count, height, width = masks.shape
    channels = patches.shape[1]
    coherence, across, agreement = np.zeros(count), np.zeros(count), np.zeros(count)
    inside = np.zeros(channels, np.float32)
    ring = np.zeros(channels, np.float32)
    place = np.zeros((height, width), np.uint8)  # 3 inside, 2 ring, 1 surroundings
    away = np.zeros((height, width), np.int32)
    for i in range(count):
        mask = masks[i]
        top, bottom, left, right = _box(mask, MARGIN)
        _lay_out(mask, top, bottom, left, right, away, place)
        inside[:] = 0
        ring[:] = 0
        area, around = 0, 0
        for y in range(top, bottom):
            for x in range(left, right):
                if place[y, x] == 3:
                    area += 1
                    for c in range(channels):
                        inside[c] += patches[y * width + x, c]
                elif place[y, x] == 2:
                    around += 1
                    for c in range(channels):
                        ring[c] += patches[y * width + x, c]
        own, other = np.float32(0), np.float32(0)
        for c in range(channels):
            inside[c] /= area
            own += inside[c] * inside[c]
            other += inside[c] * ring[c] / max(around, 1)
        middle = (own + other) / 2
        alike, common = 0, 0
        for y in range(top, bottom):
            for x in range(left, right):
                if place[y, x]:
                    product = np.float32(0)
                    for c in range(channels):
                        product += inside[c] * patches[y * width + x, c]
                    if product > middle:
                        alike += 1
                        common += place[y, x] == 3
        coherence[i], across[i] = own, other
        agreement[i] = common / (alike + area - common)
    return coherence, across, agreement


@njit(cache=True)
def _box(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:  # pragma: no cover - compiled
    """First and last row and column (the last excluded) of a mask's box, a margin around it."""
    height, width = mask.shape
    columns = np.zeros(width, np.bool_)
    top, bottom = height, 0
    for y in range(height):
        is_occupied = False
        for x in range(width):
            is_occupied |= mask[y, x]
            columns[x] |= mask[y, x]
        if is_occupied:
            top, bottom = min(top, y), y + 1
    left, right = 0, width
    while left < width and not columns[left]:
        left += 1
    while right > left and not columns[right - 1]:
        right -= 1
    return (
        max(0, top - margin),
        min(height, bottom + margin),
        max(0, left - margin),
        min(width, right + margin),
    )


@njit(cache=True)
def _lay_out(  # pragma: no cover - compiled
    mask: np.ndarray,
    top: int,
    bottom: int,
    left: int,
    right: int,
    away: np.ndarray,
    place: np.ndarray,
) -> None:
    """Write what each patch of a box is to the mask, by its distance; ``away`` is scratch."""
    for y in range(top, bottom):  # along the row, first to the left, then to either side
        steps = 2 * MARGIN
        for x in range(left, right):
            steps = 0 if mask[y, x] else min(steps + 1, 2 * MARGIN)
            away[y, x] = steps
        steps = 2 * MARGIN
        for x in range(right - 1, left - 1, -1):
            steps = min(steps + 1, away[y, x])
            away[y, x] = steps
    for y in range(top, bottom):
        for x in range(left, right):
            nearest = 4 * MARGIN * MARGIN
            for v in range(max(top, y - MARGIN), min(bottom, y + MARGIN + 1)):
                nearest = min(nearest, (v - y) * (v - y) + away[v, x] * away[v, x])
            if nearest == 0:
                place[y, x] = 3
            else:
                place[y, x] = np.uint8(nearest <= RING) + np.uint8(nearest <= SURROUNDINGS)


@njit(cache=True, fastmath=True)
def _most_alike(masks: np.ndarray, tree: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """(M,): the highest IoU of each mask (M, N) bool with a region of a tree (N - 1, 2)."""
    count, patches = masks.shape
    order, ranges = leaf_ranges(tree)
    first, last = ranges[patches:, 0].astype(np.int32), ranges[patches:, 1].astype(np.int32)
    best = np.zeros(count, np.float32)
    before = np.zeros(patches + 1, np.float32)  # patches of the mask before each place
    for i in range(count):
        own = np.float32(0)
        for place in range(patches):
            own += np.float32(masks[i, order[place]])
            before[place + 1] = own
        highest = np.float32(0)
        for region in range(patches - 1):
            common = before[last[region]] - before[first[region]]
            area = np.float32(last[region] - first[region])
            highest = max(highest, common / (area + own - common))
        best[i] = highest
    return best
