"""Holes filled, fragments dropped.

Shape letters: M masks, h and w rows and columns of their frame.
"""

from __future__ import annotations

import cv2
import numpy as np


def fill_holes(masks: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Make all that a mask encloses (4-connected) part of it.

    Args:
        masks: (M, h, w) bool.
        out: gets the result, and may be ``masks`` itself; None makes a new array.

    Returns:
        (M, h, w) bool.
    """
    filled = _begin(masks, out)
    for mask in filled:
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = mask[y : y + height, x : x + width]  # holes lie within
        rest = np.pad(~box, 1, constant_values=True)
        _, labels = cv2.connectedComponents(rest.view(np.uint8), connectivity=4)
        box |= (labels != labels[0, 0])[1:-1, 1:-1]
    return filled


def drop_fragments(
    masks: np.ndarray, min_share: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Take off a mask's components below a share of its largest one (our own, for ``regions``).

    Args:
        masks: (M, h, w) bool.
        min_share: in [0, 1].
        out: see ``fill_holes``.

    Returns:
        (M, h, w) bool.
    """
    kept = _begin(masks, out)
    for mask in kept:
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = mask[y : y + height, x : x + width]
        count, labels = cv2.connectedComponents(box.astype(np.uint8), connectivity=4)
        if count > 2:  # 0 is what the mask leaves out
            areas = np.bincount(labels.ravel())[1:]
            box &= np.concatenate([[False], areas >= min_share * areas.max()])[labels]
    return kept


def _begin(masks: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Return the array to work in: a hundred masks are many megabytes, and new ones cost time."""
    if out is None:
        return masks.copy()
    if out is not masks:
        out[:] = masks
    return out
