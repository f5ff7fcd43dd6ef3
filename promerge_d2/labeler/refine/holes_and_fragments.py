"""Holes filled, fragments dropped.

Shape letters: M masks, h and w rows and columns of their frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from promerge_d2.labeler.components import label_components


def fill_holes(masks: np.ndarray) -> np.ndarray:
    """Make all that a mask encloses (4-connected) part of it.

    Args:
        masks: (M, h, w) bool.

    Returns:
        (M, h, w) bool.
    """
    filled = masks.copy()
    for mask in filled:
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = mask[y : y + height, x : x + width]  # holes lie within
        rest = np.pad(~box, 1, constant_values=True)
        _, labels = cv2.connectedComponents(rest.view(np.uint8), connectivity=4)
        box |= (labels != labels[0, 0])[1:-1, 1:-1]
    return filled


def drop_fragments(masks: np.ndarray, min_share: float) -> np.ndarray:
    """Take off a mask's components below a share of its largest one (our own, for ``regions``).

    Args:
        masks: (M, h, w) bool.
        min_share: in [0, 1].

    Returns:
        (M, h, w) bool.
    """
    labels, areas = label_components(masks)
    # labels rise from mask to mask
    last = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    first = np.concatenate([[0], last[:-1]]) + 1
    is_kept = np.zeros(len(areas), bool)
    for start, stop in zip(first, last + 1, strict=True):
        mine = areas[start:stop]
        is_kept[start:stop] = mine >= min_share * mine.max(initial=0)
    return is_kept[labels]
