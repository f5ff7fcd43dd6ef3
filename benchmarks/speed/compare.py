"""How far masks agree.

Shape letters: M masks, H and W rows and columns.
"""

from __future__ import annotations

import numpy as np


def identical(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    """Count the images that have the same set of masks (M, H, W) on both sides."""
    return sum(
        {mask.tobytes() for mask in one} == {mask.tobytes() for mask in other}
        for one, other in zip(first, second, strict=True)
    )


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the IoU of two bool masks of one shape; 1 where both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def ious(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Compute the IoU of every mask with its counterpart, over all images: (number of masks,)."""
    pairs = zip(first, second, strict=True)
    return np.array([iou(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)])


def agreement(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Average, over all masks of both sides, the best IoU with a mask of the other side.

    Args:
        first: for each image its masks (M, H, W) bool; M may be 0.
        second: of the same images.

    Returns:
        In [0, 1]; 1 where there is no mask at all.
    """
    best = [
        max((iou(mask, candidate) for candidate in others), default=0.0)
        for one, other in zip(first, second, strict=True)
        for masks, others in ((one, other), (other, one))
        for mask in masks
    ]
    return float(np.mean(best)) if best else 1.0
