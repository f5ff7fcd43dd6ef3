"""Scores: how likely a mask is an object, from the features and the colours alone (our own).

Nine cues, each in [0, 1], are multiplied, and the product is brought to the scale of a
probability. No label went into the cues; their powers and the scale were fixed on COCO train2017
(docs/best.md), apart from any image that a reported figure is of.

Shape letters: D components, H and W rows and columns of the patch grid, N = H * W patches, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from promerge_d2.labeler.regions.candidates import Candidates
from promerge_d2.labeler.regions.merge_tree import leaf_ranges

CUES = (
    "contrast",
    "agreement",
    "background",
    "border",
    "size",
    "compactness",
    "prominence",
    "edge",
    "support",
)

_RING = 5  # patches whose squared distance to a mask is no more are the ring around it
_SURROUNDINGS = 18  # likewise, for the agreement
_MARGIN = 4  # patches that the surroundings reach beyond a mask's box
_BORDER = 2  # patches
_AGREEING_MAPS = 2  # the first of the candidates' maps, asked for the agreement
_EVEN_ODDS = 0.7  # a product, so divided, at which every second mask was an object
_ODDS_POWER = 0.7  # of it, to make odds
_BEST = 20  # masks of a photograph by which it is compared with others
_LEVEL = 0.6  # the power of their mean that its products are divided by


@dataclass(frozen=True)
class Frame:
    """The photograph that a patch grid lies on.

    Attributes:
        resemblance: (H, W) in [0, 1], see ``resemblance_to_border``.
        prominence: (H, W) in [0, 1], the norm of a patch's raw feature, in shares of the largest (1
            where all are 0).
        colours: (H, W, 3) float32, CIE Lab.
        share: of the photograph that the grid covers.
    """

    resemblance: np.ndarray
    prominence: np.ndarray
    colours: np.ndarray
    share: float = 1.0

    @classmethod
    def of(
        cls,
        unit: np.ndarray,
        norms: np.ndarray,
        image: np.ndarray,
        background_quantile: float = 0.7,
    ) -> Frame:
        """Describe a grid that covers the whole photograph.

        Args:
            unit: (D, H, W) unit features.
            norms: (H, W) of the raw features.
            image: (h, w, 3) uint8 RGB, the photograph at any size.
            background_quantile: see ``resemblance_to_border``.

        Returns:
            The frame.
        """
        height, width = norms.shape
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        colours = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        resemblance = resemblance_to_border(unit, background_quantile)
        prominence = norms / norms.max() if norms.max() > 0 else np.ones_like(norms)
        return cls(resemblance.reshape(height, width), prominence, colours)


def score_candidates(
    candidates: Candidates, frame: Frame, most: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score the candidates that have a hope of a place among the best.

    The score is made of nine cues:

    * ``contrast``: mean feature inside, times itself less the mean feature of the ring around: it
      is high when the mask is of one kind and its surroundings are of another;
    * ``agreement``: the mask's IoU, in its surroundings, with the patches whose product with its
      mean feature is above the middle between inside and ring: what a prompt with that feature
      would find there; mean of two maps, squared;
    * ``background``: one less the mean share of border patches that the mask's patches resemble,
      squared;
    * ``border``: one less the share of the image's border that the mask covers, to the power of
      4;
    * ``size``: with the area's share s, s to the power of 0.8, and less for very small and very
      large masks: exp(-0.06 (ln s + 3)^2);
    * ``compactness``: the outline of a square of this area, in shares of the mask's own, to the
      power of 2.5;
    * ``prominence``: the mean norm of the mask's raw features, in shares of the largest norm of
      the image, squared: objects have longer features than stuff;
    * ``edge``: with e the mean colour difference of neighbours across the mask's outline and m
      that of all neighbours in the image, e / (e + m), or a half where the image is flat;
      to the power of 1.5;
    * ``support``: the IoU with the most alike region of each tree, their mean squared: what only
      one view of the features shows is seldom an object. It costs most, and is asked only of the
      ``most`` masks for which the product of the others is highest.

    Cosines are compared with quantiles and means of the image's own, never with fixed numbers, so
    that the scores carry over between backbones.

    Args:
        candidates: none of the masks empty.
        frame: the photograph around.
        most: candidates to score at most.

    Returns:
        Indices (K,) int64 of the scored ones, in their order. By the name of each cue (K,) float64,
        and under ``product`` their product.
    """
    cues = _local_cues(candidates, frame)
    product = np.prod(list(cues.values()), axis=0)
    kept = np.sort(np.argsort(-product, kind="stable")[:most])
    cues = {name: cue[kept] for name, cue in cues.items()}
    cues["support"] = _support(candidates, kept)
    return kept, {**cues, "product": np.prod(list(cues.values()), axis=0)}


def to_probability(products: np.ndarray) -> np.ndarray:
    """Bring products of cues to the scale of a probability.

    How much stands out differs from photograph to photograph. A product is divided by the
    geometric mean of the photograph's twenty best, to the power of 0.6; the odds are (q / 0.7)^0.7
    of the quotient q. The two numbers are a logistic fit on 54 photographs of COCO train2017, so
    that half of the refined masks with a score of 0.5 have an IoU of 0.5 or more with an object
    (seen: of scores from 0.3 to 0.6 44 %, from 0.1 to 0.3 14 %, above 0.6 67 %).

    Args:
        products: (K,) of an image's masks, above 0, descending.

    Returns:
        (K,) in (0, 1), in the same order.
    """
    relative = products / np.exp(_LEVEL * np.log(products[:_BEST]).mean())
    odds = (relative / _EVEN_ODDS) ** _ODDS_POWER
    return odds / (1 + odds)


def _local_cues(candidates: Candidates, frame: Frame) -> dict[str, np.ndarray]:
    """The cues but for ``support``."""
    masks = candidates.masks
    count, height, width = masks.shape
    area = np.count_nonzero(masks, axis=(1, 2))
    contrast, agreements = np.zeros(count), []
    for index, features in enumerate(candidates.maps[:_AGREEING_MAPS]):
        patches = np.ascontiguousarray(features.reshape(len(features), -1).T)
        coherence, across, agreement = _compare(masks, patches)
        agreements.append(agreement)
        if index == 0:
            contrast = coherence - across
    steps = colour_steps(frame.colours)
    outline, at_border, across_outline = _outline(masks, steps)
    edge = across_outline / np.maximum(outline - at_border, 1)
    usual = steps.sum() / max(1, 2 * height * width - height - width)
    resemblance, prominence = _sums(masks, np.stack([frame.resemblance, frame.prominence], 2)).T
    covered = at_border * np.sqrt(frame.share) / (2 * (height + width))
    share = area * frame.share / (height * width)
    return {
        "contrast": np.clip(contrast, 0, 1),
        "agreement": np.mean(agreements, axis=0) ** 2,
        "background": (1 - resemblance / area) ** 2,
        "border": np.clip(1 - covered, 0, 1) ** 4,
        "size": share**0.8 * np.exp(-0.06 * (np.log(share) + 3) ** 2),
        "compactness": np.minimum(1, 4 * np.sqrt(area) / outline) ** 2.5,
        "prominence": (prominence / area) ** 2,
        "edge": (edge / (edge + usual) if usual > 0 else np.full(count, 0.5)) ** 1.5,
    }


def _support(candidates: Candidates, chosen: np.ndarray) -> np.ndarray:
    """(K,): the square of the mean, over the trees, of the IoU with a tree's most alike region."""
    count, height, width = candidates.masks.shape
    masks = candidates.masks.reshape(count, height * width)[chosen]
    found = [_most_alike(masks, tree) for tree in candidates.trees]
    return np.stack(found).mean(axis=0, dtype=np.float64) ** 2


def colour_steps(colours: np.ndarray) -> np.ndarray:
    """Return how much neighbours differ in colour.

    Args:
        colours: (H, W, 3).

    Returns:
        (H, W, 2) float64: Euclidean distance to the right and to the lower neighbour, 0 where
        there is none.
    """
    steps = np.zeros((*colours.shape[:2], 2))
    steps[:, :-1, 0] = np.linalg.norm(np.diff(colours, axis=1), axis=2)
    steps[:-1, :, 1] = np.linalg.norm(np.diff(colours, axis=0), axis=2)
    return steps


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
        top, bottom, left, right = _box(mask, _MARGIN)
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
        steps = 2 * _MARGIN
        for x in range(left, right):
            steps = 0 if mask[y, x] else min(steps + 1, 2 * _MARGIN)
            away[y, x] = steps
        steps = 2 * _MARGIN
        for x in range(right - 1, left - 1, -1):
            steps = min(steps + 1, away[y, x])
            away[y, x] = steps
    for y in range(top, bottom):
        for x in range(left, right):
            nearest = 4 * _MARGIN * _MARGIN
            for v in range(max(top, y - _MARGIN), min(bottom, y + _MARGIN + 1)):
                nearest = min(nearest, (v - y) * (v - y) + away[v, x] * away[v, x])
            if nearest == 0:
                place[y, x] = 3
            else:
                place[y, x] = np.uint8(nearest <= _RING) + np.uint8(nearest <= _SURROUNDINGS)


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
