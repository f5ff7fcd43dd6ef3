"""Masks as polygons and back, without losing a pixel where the format allows it.

A polygon is (P, 2) int32, x before y. There are two frames. In **pixel indices** a point is the
middle of a pixel, as OpenCV draws, and with it Ultralytics and supervision: the square of the
pixels 2 to 4 is ``2,2 4,2 4,4 2,4``. In **pixel edges** it is a corner of pixels, as COCO and CVAT
draw: the same square is ``2,2 5,2 5,5 2,5``.

Neither kind has holes. A hole is joined to the outline by a seam that goes straight up through the
mask and is walked both ways, so that it encloses nothing (a keyhole).
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

Ring = np.ndarray  # (P, 2) int32, x and y


def index_rings(mask: np.ndarray) -> list[Ring]:
    """Return an outline in pixel indices for each part of a mask, holes joined by seams.

    Drawing them all (``draw_indices``) gives the mask again, pixel by pixel.

    Args:
        mask: (h, w) bool or uint8; parts are 8-connected.

    Returns:
        A polygon a part, of one point or more, the first part being the lowest in the image.

    Example:
        >>> index_rings(np.ones((2, 3), bool))[0].tolist()
        [[0, 0], [0, 1], [2, 1], [2, 0]]
    """
    return [_without_straight_points(ring) for ring in _traced(mask)]


def edge_rings(mask: np.ndarray) -> list[Ring]:
    """Return an outline in pixel edges for each part of a mask, holes joined by seams.

    pycocotools draws the mask again of them, pixel by pixel.

    Args:
        mask: see ``index_rings``.

    Example:
        >>> edge_rings(np.ones((2, 3), bool))[0].tolist()
        [[0, 0], [0, 2], [3, 2], [3, 0]]
    """
    # with every pixel doubled, the outline runs through the half of a pixel that is at the edge
    doubled = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1)
    return [_without_straight_points((ring + 1) // 2) for ring in _traced(doubled)]


def join_rings(rings: list[Ring]) -> Ring:
    """Join the outlines of a mask's parts to one by bridges at the narrowest places.

    A bridge is walked both ways. Who draws outlines with their border, as OpenCV does, draws it one
    pixel wide: that is what is lost. Parts are joined one by one to those that are nearest.

    Args:
        rings: polygons, at least one.
    """
    joined, *rest = rings
    distance = [np.full(len(ring), np.inf) for ring in rest]
    partner = [np.zeros((len(ring), 2), np.int32) for ring in rest]
    new = joined
    while rest:
        tree = cKDTree(new)
        for ring, far, other in zip(rest, distance, partner, strict=True):
            found, where = tree.query(ring)
            nearer = found < far
            far[nearer], other[nearer] = found[nearer], new[where[nearer]]
        place = min(range(len(rest)), key=lambda i: distance[i].min())
        new, far, other = rest.pop(place), distance.pop(place), partner.pop(place)
        start = int(far.argmin())
        joined = _spliced(joined, _index(joined, other[start]), new, start)
    return joined


def three_points(ring: Ring) -> Ring:
    """Repeat the last point of an outline of one or two pixels: readers want three points."""
    return np.concatenate([ring, *[ring[-1:]] * (3 - len(ring))])


def draw_indices(rings: list[Ring], height: int, width: int) -> np.ndarray:
    """Draw outlines in pixel indices, border included, as one mask.

    Args:
        rings: polygons.
        height: of the mask, pixels.
        width: likewise.

    Returns:
        (height, width) uint8, 0 and 1.
    """
    mask = np.zeros((height, width), np.uint8)
    for ring in rings:
        cv2.fillPoly(mask, [np.asarray(ring, np.int32)], 1)
    return mask


def _traced(mask: np.ndarray) -> list[Ring]:
    """Trace the parts of a mask pixel by pixel, and splice their holes in."""
    contours, tree = cv2.findContours(
        np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    rings = [contour[:, 0] for contour in contours]
    parents = tree[0, :, 3].tolist() if rings else []
    outer = {i: ring for i, ring in enumerate(rings) if parents[i] < 0}
    holes = [(int(rings[i][:, 1].min()), i) for i, parent in enumerate(parents) if parent >= 0]
    for _, i in sorted(holes):
        # what a seam meets going up is the outside, or a hole that begins further up
        hole, parent = rings[i], parents[i]
        start = int(hole[:, 1].argmin())
        x, y = hole[start].tolist()
        background = np.flatnonzero(mask[:y, x] == 0)
        top = int(background[-1]) + 1 if len(background) else 0
        outer[parent] = _spliced(
            outer[parent], _index(outer[parent], np.array([x, top])), hole, start
        )
    return list(outer.values())


def _index(ring: Ring, point: np.ndarray) -> int:
    return int(np.flatnonzero((ring == point).all(axis=1))[0])


def _spliced(ring: Ring, place: int, other: Ring, start: int) -> Ring:
    """Walk to ``ring[place]``, over to ``other[start]``, around, and back the same way."""
    return np.concatenate([ring[: place + 1], other[start:], other[: start + 1], ring[place:]])


def _without_straight_points(ring: Ring) -> Ring:
    """Leave points out at which a ring goes straight on, and those that are met twice in a row."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)] if len(ring) > 1 else ring
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = (np.sign(before) != np.sign(after)).any(axis=1)
    # of 45 degrees and right angles only, so that signs tell directions
    return ring[turns] if turns.any() else ring[:1]
