"""Masks at other sizes: from the patch grid to the working image, and on to the photograph.

Shape letters: M masks, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import functools
import math

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
    count, rows, columns = masks.shape
    large = np.zeros((count, height, width), bool)
    down, right = height / rows, width / columns
    # by powers of two the weights are exact, so that a mask may be enlarged alone
    is_exact = math.frexp(down)[0] == math.frexp(right)[0] == 0.5 and min(down, right) >= 1
    for mask, out in zip(masks, large, strict=True):
        top, bottom, left, last = 0, rows, 0, columns
        if is_exact:
            x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
            top, bottom = max(0, y - 1), min(rows, y + h + 1)
            left, last = max(0, x - 1), min(columns, x + w + 1)
        window = (
            slice(int(top * down), int(bottom * down)),
            slice(int(left * right), int(last * right)),
        )
        side = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        soft = mask[top:bottom, left:last].astype(np.float32)
        out[window] = cv2.resize(soft, side, interpolation=cv2.INTER_LINEAR) > 0.5
    return large


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
    return _bicubic(mask.astype(np.uint8) * 255, height, width) >= 128


def resize_box(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as ``resize_mask`` does, looking at no more than the mask's own box.

    Args:
        mask: (h, w) bool.
        height: rows of the result.
        width: its columns.

    Returns:
        (height, width) bool, column by column in memory.
    """
    rows, columns = mask.shape
    if (height > rows) == (width > columns):  # which pass is first is Pillow's choice
        return np.asfortranarray(resize_mask(mask, height, width))
    if height < rows and _shrinks_first():
        return np.asfortranarray(_resize_columns_first(mask.T, width, height).T)
    return np.asfortranarray(_resize_columns_first(mask, height, width))


@functools.cache
def _shrinks_first() -> bool:
    """Whether this Pillow begins with the rows, where there are to be fewer rows, more columns."""
    mask = np.random.default_rng(0).random((32, 32)) > 0.5
    return not np.array_equal(resize_mask(mask, 24, 40), _resize_columns_first(mask, 24, 40))


def _resize_columns_first(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """``resize_mask`` in two passes, along each row and then along each column: (height, width)."""
    resized = np.zeros((height, width), bool)
    occupied = np.flatnonzero(mask.any(axis=1))
    if len(occupied):
        some = slice(occupied[0], occupied[-1] + 1)
        wide = _bicubic(mask[some].astype(np.uint8) * 255, len(mask[some]), width)
        occupied = np.flatnonzero(wide.any(axis=0))
        reached = slice(occupied[0], occupied[-1] + 1)
        padded = np.zeros((len(mask), reached.stop - reached.start), np.uint8)
        padded[some] = wide[:, reached]
        resized[:, reached] = _bicubic(padded, height, padded.shape[1]) >= 128
    return resized


def _bicubic(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
