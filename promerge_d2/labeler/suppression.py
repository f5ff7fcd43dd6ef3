"""Non-maximum suppression of masks.

Shape letters: M masks, h and w rows and columns of their frame, K kept masks.
"""

from __future__ import annotations

import numpy as np


def suppress(masks: np.ndarray, scores: np.ndarray, max_iou: float, most: int) -> np.ndarray:
    """Drop masks that overlap better ones (non-maximum suppression).

    Args:
        masks: (M, h, w) bool, none empty.
        scores: (M,); equal ones keep their order.
        max_iou: a mask is dropped when its IoU with a kept one of a higher score exceeds this.
        most: masks to keep at most.

    Returns:
        Indices of the kept masks, (K,) int64, by descending score.
    """
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    areas = np.count_nonzero(flat, axis=1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    inside = np.zeros((min(most, len(masks)), flat.shape[1]), np.float32)
    for index in order:
        if len(kept) == most:
            break
        mask = flat[index].astype(np.float32)
        common = inside[: len(kept)] @ mask
        if not (common > max_iou * (areas[kept] + areas[index] - common)).any():
            inside[len(kept)] = mask
            kept.append(index)
    return np.array(kept, np.int64)
