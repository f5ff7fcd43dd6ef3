"""A mask of the working image to the run lengths of the photograph's, without the picture between.

The masks are those of ``resize_mask`` to the bit: Pillow's bicubic filter in two passes, with its
integer arithmetic, cut at half of the maximum. Only where a column changes is the filter asked;
so 48 megapixels take hardly more time or memory than one.

Shape letters: h and w rows and columns of the mask, R runs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit
from pycocotools import mask as mask_api

from promerge_d2.labeler.refine.resize import resize_box

_BITS = 22  # after the point, of Pillow's integer coefficients
_SUPPORT = 2.0  # of the bicubic filter, in pixels of the mask


def resize_to_rle(mask: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Resize a mask and encode it.

    Args:
        mask: (h, w) bool.
        height: rows of the result.
        width: its columns.

    Returns:
        The compressed RLE of ``resize_mask(mask, height, width)``: COCO's ``size`` and ``counts``
        (bytes).
    """
    if mask.shape == (height, width):
        return mask_api.encode(np.asfortranarray(mask.view(np.uint8)))
    if height < mask.shape[0] or width < mask.shape[1]:
        return mask_api.encode(resize_box(mask, height, width).view(np.uint8))
    rows = _coefficients(mask.shape[0], height)
    columns = _coefficients(mask.shape[1], width)
    runs = _runs(np.ascontiguousarray(mask.T), rows, columns)
    return mask_api.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


@functools.lru_cache(maxsize=64)
def _coefficients(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bicubic filter along one axis that grows, as Pillow computes it.

    Returns:
        For each pixel of the result the first pixel that it is made of and how many there are,
        (wanted,) int64 each, and their weights (wanted, T) int64, a unit being 2 ** 22.
    """
    center = (np.arange(wanted) + 0.5) * (size / wanted)
    first = np.maximum((center - _SUPPORT + 0.5).astype(np.int64), 0)
    last = np.minimum((center + _SUPPORT + 0.5).astype(np.int64), size)
    taps = np.arange((last - first).max())
    away = np.abs(first[:, None] + taps - center[:, None] + 0.5)
    weights = np.where(
        away < 1,
        (1.5 * away - 2.5) * away * away + 1,
        np.where(away < 2, (((away - 5) * away + 8) * away - 4) * -0.5, 0.0),
    )
    weights[taps >= (last - first)[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    whole = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)
    return first, last - first, whole


@njit(cache=True)
def _byte(value: int) -> int:  # pragma: no cover - compiled
    """A weighted sum rounded and clipped to 0..255."""
    return min(max((value + (1 << (_BITS - 1))) >> _BITS, 0), 255)


@njit(cache=True)
def _runs(  # pragma: no cover - compiled
    mask: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Run lengths (R,) int64 down the columns of the result, the first of background.

    Args:
        mask: (w, h) bool, transposed.
        rows: of ``_coefficients``.
        columns: likewise.
    """
    w, h = mask.shape
    row_first, row_count, row_weights = rows
    column_first, column_count, column_weights = columns
    height, width = len(row_first), len(column_first)
    top, bottom = h, 0  # of what there is of the mask in each column
    occupied = np.zeros(w, np.bool_)
    for x in range(w):
        for y in range(h):
            if mask[x, y]:
                occupied[x] = True
                top, bottom = min(top, y), max(bottom, y + 1)
    last_row = np.zeros(h + 1, np.int64)  # rows of the result that need no row from here on
    for y in range(height):
        last_row[row_first[y] + row_count[y]] = y + 1
    for y in range(1, h + 1):
        last_row[y] = max(last_row[y], last_row[y - 1])
    column = np.zeros(h, np.int64)  # of the result's width, the mask's height
    same_to = np.zeros(h, np.int64)  # rows from here to this one (excluded) have one value
    runs = np.empty(1024, np.int64)
    count = 0
    inside = False
    length = 0
    for x in range(width):
        left, right = column_first[x], column_first[x] + column_count[x]
        if not occupied[left:right].any():
            if inside:
                count, runs = _append(runs, count, length)
                inside, length = False, 0
            length += height
            continue
        for y in range(top, bottom):
            total = 0
            for k in range(left, right):
                if mask[k, y]:
                    total += column_weights[x, k - left]
            column[y] = _byte(255 * total)
        same_to[h - 1] = h
        for y in range(h - 2, -1, -1):
            same_to[y] = same_to[y + 1] if column[y] == column[y + 1] else y + 1
        y = 0
        while y < height:
            first, taps = row_first[y], row_count[y]
            if same_to[first] >= first + taps:  # one value, whose weights sum up to one
                value = column[first]
                end = last_row[same_to[first]]
            else:
                total = 0
                for k in range(taps):
                    total += column[first + k] * row_weights[y, k]
                value = _byte(total)
                end = y + 1
            if (value >= 128) != inside:
                count, runs = _append(runs, count, length)
                inside, length = not inside, 0
            length += end - y
            y = end
    count, runs = _append(runs, count, length)
    return runs[:count]


@njit(cache=True)
def _append(  # pragma: no cover - compiled
    runs: np.ndarray, count: int, length: int
) -> tuple[int, np.ndarray]:
    if count == len(runs):
        runs = np.concatenate((runs, np.empty(count, np.int64)))
    runs[count] = length
    return count + 1, runs
