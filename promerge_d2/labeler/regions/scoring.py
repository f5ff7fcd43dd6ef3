"""Scores: how likely a mask is an object, from the features alone (our own).

Seven cues, each in [0, 1], are multiplied, and the product is brought to the scale of a
probability. No label went into the cues; their powers and the scale were fixed on COCO train2017
(docs/algorithm.md), apart from any image that a reported figure is of.

Shape letters: D components, H and W rows and columns of the patch grid, N = H * W patches, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from promerge_d2.labeler.regions.candidates import Candidates

CUES = ("contrast", "agreement", "background", "border", "size", "compactness", "support")

_RING = 5  # patches whose squared distance to a mask is no more are the ring around it
_SURROUNDINGS = 18  # likewise, for the agreement
_MARGIN = 4  # patches that the surroundings reach beyond a mask's box
_BORDER = 2  # patches
_AGREEING_MAPS = 2  # the first of the candidates' maps, asked for the agreement
_SIDE_BY_SIDE = 16  # masks that go up a tree together
_EVEN_ODDS = 0.1  # the product of cues at which every second mask was an object


@dataclass(frozen=True)
class Frame:
    """The photograph that a patch grid lies on.

    Attributes:
        resemblance: (H * W,) in [0, 1], see ``resemblance_to_border``.
        share: of the photograph that the grid covers.
    """

    resemblance: np.ndarray
    share: float = 1.0

    @classmethod
    def of(cls, unit: np.ndarray, background_quantile: float = 0.7) -> Frame:
        """Describe a grid (D, H, W) of unit features that covers the whole photograph."""
        return cls(resemblance_to_border(unit, background_quantile))


def score_candidates(
    candidates: Candidates, frame: Frame, most: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score the candidates that have a hope of a place among the best.

    The score is made of seven cues:

    * ``contrast``: mean feature inside, times itself less the mean feature of the ring around: it
      is high when the mask is of one kind and its surroundings are of another;
    * ``agreement``: the mask's IoU, in its surroundings, with the patches whose product with its
      mean feature is above the middle between inside and ring: what a prompt with that feature
      would find there; mean of two maps, cubed;
    * ``background``: one less the mean share of border patches that the mask's patches resemble,
      cubed;
    * ``border``: one less the share of the image's border that the mask covers, cubed;
    * ``size``: with the area's share s, the root of s, and less for very small and very large
      masks: exp(-0.06 (ln s + 3)^2);
    * ``compactness``: the outline of a square of this area, in shares of the mask's own, squared;
    * ``support``: the IoU with the most alike region of each tree, their mean cubed: what only one
      view of the features shows is seldom an object. It costs most, and is asked only of the
      ``most`` masks for which the product of the others is highest.

    Cosines are compared with quantiles and means of the image's own, never with fixed numbers, so
    that the scores carry over between backbones.

    Args:
        candidates: none of the masks empty.
        frame: the photograph around.
        most: candidates to score at most.

    Returns:
        Indices (K,) int64 of the scored ones, in their order. By the name of each cue (K,) float64,
        and under ``score`` p / (p + 0.1) of their product p: on COCO train2017, of the masks with
        0.3 or more half were objects (IoU 0.5), of those with 0.1 to 0.2 one in eight.
    """
    cues = _local_cues(candidates, frame)
    product = np.prod(list(cues.values()), axis=0)
    kept = np.sort(np.argsort(-product, kind="stable")[:most])
    cues = {name: cue[kept] for name, cue in cues.items()}
    cues["support"] = _support(candidates, kept)
    product = np.prod(list(cues.values()), axis=0)
    return kept, {**cues, "score": product / (product + _EVEN_ODDS)}


def _local_cues(candidates: Candidates, frame: Frame) -> dict[str, np.ndarray]:
    """The cues but for ``support``."""
    masks = candidates.masks
    count, height, width = masks.shape
    flat = masks.reshape(count, height * width)
    area = np.count_nonzero(flat, axis=1)
    contrast, agreements = np.zeros(count), []
    for index, features in enumerate(candidates.maps[:_AGREEING_MAPS]):
        patches = np.ascontiguousarray(features.reshape(len(features), -1).T)
        coherence, across, agreement = _compare(masks, patches)
        agreements.append(agreement)
        if index == 0:
            contrast = coherence - across
    resemblance = flat @ frame.resemblance / area
    outline, at_border = _outline(masks)
    covered = at_border * np.sqrt(frame.share) / (2 * (height + width))
    share = area * frame.share / (height * width)
    return {
        "contrast": np.clip(contrast, 0, 1),
        "agreement": np.mean(agreements, axis=0) ** 3,
        "background": (1 - resemblance) ** 3,
        "border": np.clip(1 - covered, 0, 1) ** 3,
        "size": np.sqrt(share) * np.exp(-0.06 * (np.log(share) + 3) ** 2),
        "compactness": np.minimum(1, 4 * np.sqrt(area) / outline) ** 2,
    }


def _support(candidates: Candidates, chosen: np.ndarray) -> np.ndarray:
    """(K,): the cube of the mean, over the trees, of the IoU with a tree's most alike region."""
    count, height, width = candidates.masks.shape
    masks = candidates.masks.reshape(count, height * width)[chosen]
    columns = np.ascontiguousarray(masks.T, np.float32)
    found = [_most_alike(columns, tree) for tree in candidates.trees]
    return np.stack(found).mean(axis=0, dtype=np.float64) ** 3


def resemblance_to_border(unit: np.ndarray, quantile: float) -> np.ndarray:
    """Ask how much each patch resembles the image's border.

    Args:
        unit: (D, H, W) float32 unit features.
        quantile: a patch resembles a border patch when their product is above this quantile of
            all such products in the image.

    Returns:
        (H * W,) float64 in [0, 1]: the share of border patches that it resembles.
    """
    _, height, width = unit.shape
    flat = unit.reshape(len(unit), -1)
    border = np.ones((height, width), bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    products = flat[:, border.ravel()].T @ flat
    place = int(quantile * (products.size - 1))
    limit = np.partition(products.ravel(), place)[place]
    return (products > limit).mean(axis=0)


@njit(cache=True)
def _outline(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """(M,) sides of patches along each mask's outline, and those of them on the grid's border."""
    count, height, width = masks.shape
    outline = np.zeros(count)
    border = np.zeros(count)
    for i in range(count):
        mask = masks[i]
        for y in range(height):
            for x in range(width):
                if not mask[y, x]:
                    continue
                for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    v, u = y + dy, x + dx
                    if v < 0 or u < 0 or v == height or u == width:
                        outline[i] += 1
                        border[i] += 1
                    elif not mask[v, u]:
                        outline[i] += 1
    return outline, border


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
    for i in range(count):
        mask = masks[i]
        top, bottom, left, right = height, 0, width, 0
        for y in range(height):
            for x in range(width):
                if mask[y, x]:
                    top, bottom = min(top, y), max(bottom, y + 1)
                    left, right = min(left, x), max(right, x + 1)
        top, bottom = max(0, top - _MARGIN), min(height, bottom + _MARGIN)
        left, right = max(0, left - _MARGIN), min(width, right + _MARGIN)
        for y in range(top, bottom):
            for x in range(left, right):
                place[y, x] = 3 if mask[y, x] else 0
        for y in range(top, bottom):
            for x in range(left, right):
                if not mask[y, x] or _is_inner(mask, y, x):
                    continue
                for v in range(max(top, y - _MARGIN), min(bottom, y + _MARGIN + 1)):
                    for u in range(max(left, x - _MARGIN), min(right, x + _MARGIN + 1)):
                        away = (v - y) ** 2 + (u - x) ** 2
                        if away <= _RING:
                            place[v, u] = max(place[v, u], 2)
                        elif away <= _SURROUNDINGS:
                            place[v, u] = max(place[v, u], 1)
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
def _is_inner(mask: np.ndarray, y: int, x: int) -> bool:  # pragma: no cover - compiled
    """Whether no neighbour of a patch of the mask is outside of it."""
    height, width = mask.shape
    return (
        (y == 0 or mask[y - 1, x])
        and (y == height - 1 or mask[y + 1, x])
        and (x == 0 or mask[y, x - 1])
        and (x == width - 1 or mask[y, x + 1])
    )


@njit(cache=True, fastmath=True)
def _most_alike(flat: np.ndarray, tree: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """(M,): the highest IoU of each mask of (N, M) float32 with a region of a tree (N - 1, 2)."""
    patches, count = flat.shape
    best = np.zeros(count, np.float32)
    area = np.ones(2 * patches - 1, np.float32)
    for merge in range(patches - 1):
        area[patches + merge] = area[tree[merge, 0]] + area[tree[merge, 1]]
    common = np.zeros((2 * patches - 1, _SIDE_BY_SIDE), np.float32)
    own = np.ones(_SIDE_BY_SIDE, np.float32)
    highest = np.zeros(_SIDE_BY_SIDE, np.float32)
    for start in range(0, count, _SIDE_BY_SIDE):
        stop = min(start + _SIDE_BY_SIDE, count)
        own[:] = 1
        highest[:] = 0
        common[:patches] = 0
        for p in range(patches):
            for j in range(stop - start):
                common[p, j] = flat[p, start + j]
        for j in range(stop - start):
            own[j] = common[:patches, j].sum()
        for merge in range(patches - 1):
            first, second, whole = tree[merge, 0], tree[merge, 1], patches + merge
            for j in range(_SIDE_BY_SIDE):
                both = common[first, j] + common[second, j]
                common[whole, j] = both
                highest[j] = max(highest[j], both / (area[whole] + own[j] - both))
        for j in range(stop - start):
            best[start + j] = highest[j]
    return best
