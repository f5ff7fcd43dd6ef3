"""Masks as outlines of a small picture, in a time that does not depend on the photograph's size.

A mask is read where the small picture has its pixels, straight from the run lengths.
Frame: pixels of the small picture, x to the right, y down. Shape letters: h and w of that picture.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.rle import parse_counts

_ROUGH = 0.6  # pixels that an outline may be off


def fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the sides of a picture whose longer one is at most ``side``.

    Example:
        >>> fit(300, 600, 200)
        (100, 200)
    """
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def sample(rle: dict[str, Any], height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Read a mask at the centres of the pixels of a smaller picture.

    Args:
        rle: compressed, ``counts`` as bytes.
        height: of the picture, h.
        width: w.

    Returns:
        The part of the picture that holds the mask, bool, and the row and column of its corner.
    """
    rows, columns = rle["size"]
    x, y, box_width, box_height = mask_api.toBbox(rle).tolist()
    ys, top = _centers(rows, height, y, y + box_height)
    xs, left = _centers(columns, width, x, x + box_width)
    ends = np.cumsum(np.array(parse_counts(rle["counts"]), np.int64))
    pixels = xs[:, None] * rows + ys  # of the photograph, column by column
    inside = np.searchsorted(ends, pixels.ravel(), side="right") % 2
    return inside.reshape(pixels.shape).T.astype(bool), top, left


def _centers(size: int, wanted: int, start: float, stop: float) -> tuple[np.ndarray, int]:
    """Return the centres, in the photograph, of the pixels from ``start`` to ``stop``."""
    first = max(0, int(start * wanted / size))
    last = min(wanted, int(np.ceil(stop * wanted / size)))
    return ((np.arange(first, last) + 0.5) * size / wanted).astype(np.int64), first


def outline(rle: dict[str, Any], height: int, width: int) -> str:
    """Trace a mask as the path of an SVG; one too small to be met becomes its box.

    Args:
        rle: compressed, ``counts`` as bytes.
        height: of the picture, h.
        width: w.

    Returns:
        The path; empty for a mask without a pixel.
    """
    mask, top, left = sample(rle, height, width)
    if not mask.any():
        if not mask_api.area(rle):
            return ""
        x, y, box_width, box_height = mask_api.toBbox(rle).tolist()
        down, right = height / rle["size"][0], width / rle["size"][1]
        return (
            f"M{x * right:.1f},{y * down:.1f}h{box_width * right:.1f}"
            f"v{box_height * down:.1f}h{-box_width * right:.1f}z"
        )
    return trace(mask, _ROUGH, 1.0, left, top)


def trace(
    mask: np.ndarray, rough: float, scale: float = 1.0, left: float = 0, top: float = 0
) -> str:
    """Trace the contours of a mask, through the centres of its outer pixels.

    Args:
        mask: (h, w) bool.
        rough: pixels that an outline may be off.
        scale: the length of a pixel in the path.
        left: the x of the mask's corner, in pixels.
        top: its y.

    Returns:
        The path of an SVG.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = (cv2.approxPolyDP(contour, rough, True)[:, 0] + (left + 0.5, top + 0.5)) * scale
        parts.append("M" + "L".join(f"{x:g},{y:g}" for x, y in points.round(2).tolist()) + "z")
    return "".join(parts)
