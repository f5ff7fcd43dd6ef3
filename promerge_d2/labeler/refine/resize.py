"""Masks at other sizes: from the patch grid to the working image, and on to the photograph.

Shape letters: M masks, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def upsample(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge masks of the patch grid so that patches become rectangles, as the release does.

    Pixel r of the result shows row ``floor(r * H / height)``.

    Example: ``upsample([[[1, 0]]], 2, 4)`` is ``[[[1, 1, 0, 0], [1, 1, 0, 0]]]``.

    Args:
        masks: (M, H, W), bool for masks; any other array of pictures does as well.
        height: rows of the result.
        width: its columns.

    Returns:
        (M, height, width), of the same dtype.
    """
    rows = np.arange(height) * masks.shape[1] // height
    columns = np.arange(width) * masks.shape[2] // width
    return masks[:, rows][:, :, columns]


def upsample_smoothly(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge masks by linear interpolation between the centres of patches, cut above a half.

    Edges become slanted or round where ``upsample`` leaves steps (our own, for ``regions``).

    Args:
        masks: (M, H, W) bool.
        height: rows of the result.
        width: its columns.

    Returns:
        (M, height, width) bool.
    """
    soft = [
        cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        for mask in masks
    ]
    return np.array(soft).reshape(-1, height, width) > 0.5


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask with PIL's bicubic filter and cut it at half of the maximum.

    Args:
        mask: (h, w) bool.
        height: rows of the result.
        width: its columns.

    Returns:
        (height, width) bool.
    """
    if mask.shape == (height, width):
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) >= 128
