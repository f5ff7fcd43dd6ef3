"""Borders of masks drawn along the photograph's edges by a guided filter (our own use of it).

He, Sun and Tang, "Guided Image Filtering" (2010): in every window the mask is fitted as a linear
function of the colour, and the fits of all windows that hold a pixel are averaged. The windows'
means and covariances of the colour are those of the image, shared by all of its masks; a mask is
worked on inside its own box alone. The fits are found on every other pixel and interpolated ("Fast
Guided Filter", 2015). A pixel further than two radii from a mask's border keeps its side.

Shape letters: M masks, h and w rows and columns of the working image, H and W half of them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

RADII = (12, 6)  # of the windows, in pixels of the working image: first far, then near
EPSILON = 1e-4  # colours from 0 to 1: edges of a smaller variance are smoothed over

STEP = 2  # the fits are found on every so manieth pixel of a row and of a column


def guided_border(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Refine masks by two guided filters, the second with windows of half the size.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.

    Returns:
        (M, h, w) bool.
    """
    return _filter(image, masks, RADII, EPSILON)


def guided_filter(
    image: np.ndarray, masks: np.ndarray, radius: int, epsilon: float = EPSILON
) -> np.ndarray:
    """Move the borders of masks to the edges of the image nearby.

    Example: where the image is one flat colour a straight border stays where it is.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool.
        radius: of a window, in pixels.
        epsilon: what is added to the variance of a colour in a window.

    Returns:
        (M, h, w) bool.
    """
    return _filter(image, masks, (radius,), epsilon)


def _filter(
    image: np.ndarray, masks: np.ndarray, radii: tuple[int, ...], epsilon: float
) -> np.ndarray:
    """``guided_filter`` by windows of each radius in turn."""
    height, width = image.shape[:2]
    odd = ((0, height % STEP), (0, width % STEP))
    guide = np.pad(image, (*odd, (0, 0)), mode="edge").astype(np.float32) / 255
    refined = np.pad(masks, ((0, 0), *odd), mode="edge")
    small = cv2.resize(guide, None, fx=1 / STEP, fy=1 / STEP, interpolation=cv2.INTER_AREA)
    for radius in radii:
        reach = radius // STEP
        count = _box(np.ones(small.shape[:2], np.float32), reach)
        mean, inverse = _window_statistics(small, count, reach, epsilon)
        for mask in refined:
            rows, columns = _neighbourhood(mask, 2 * reach, small.shape)
            near = (rows, columns)
            fine = tuple(slice(STEP * side.start, STEP * side.stop) for side in near)
            share = cv2.resize(
                mask[fine].astype(np.float32),
                (columns.stop - columns.start, rows.stop - rows.start),
                interpolation=cv2.INTER_AREA,
            )
            sums = _box(_with_colour(share, small[near]), reach)
            fits = _box(_fit(sums, count[near], mean[near], inverse[near]), reach)
            fits /= count[near][:, :, None]
            fits = cv2.resize(fits, None, fx=STEP, fy=STEP, interpolation=cv2.INTER_LINEAR)
            _draw(fits, guide[fine], mask[fine])
        # a pixel beyond the picture is the last one of it
        refined[:, height:] = refined[:, height - 1 : height]
        refined[:, :, width:] = refined[:, :, width - 1 : width]
    return np.ascontiguousarray(refined[:, :height, :width])


def _box(picture: np.ndarray, reach: int) -> np.ndarray:
    """Sums over windows of 2 * reach + 1; beyond the picture there is nothing."""
    side = (2 * reach + 1, 2 * reach + 1)
    return cv2.boxFilter(picture, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)


def _window_statistics(
    guide: np.ndarray, count: np.ndarray, reach: int, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours (H, W, 3) and inverse covariances (H, W, 6), the upper triangles row by row."""
    mean = _box(guide, reach) / count[:, :, None]
    upper = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = np.stack([guide[:, :, i] * guide[:, :, j] for i, j in upper], axis=2)
    xx, xy, xz, yy, yz, zz = (
        _box(np.ascontiguousarray(products[:, :, k]), reach) / count
        - mean[:, :, i] * mean[:, :, j]
        + (epsilon if i == j else 0)
        for k, (i, j) in enumerate(upper)
    )
    cofactors = [yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy]
    cofactors += [xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy]
    determinant = xx * cofactors[0] + xy * cofactors[1] + xz * cofactors[2]
    return mean, np.stack(cofactors, axis=2) / determinant[:, :, None]


def _neighbourhood(mask: np.ndarray, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns (of every other pixel) of a mask's box and ``margin`` around it."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    rows, columns = (
        slice(max(0, start // STEP - margin), min(side, -(-stop // STEP) + margin))
        for start, stop, side in ((y, y + height, shape[0]), (x, x + width, shape[1]))
    )
    return rows, columns


@njit(cache=True)
def _with_colour(share: np.ndarray, guide: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """(H, W, 4): the mask, and its product with each colour."""
    height, width = share.shape
    out = np.empty((height, width, 4), np.float32)
    for y in range(height):
        for x in range(width):
            value = share[y, x]
            out[y, x, 0] = value
            for c in range(3):
                out[y, x, c + 1] = value * guide[y, x, c]
    return out


@njit(cache=True)
def _fit(  # pragma: no cover - compiled
    sums: np.ndarray, count: np.ndarray, mean: np.ndarray, inverse: np.ndarray
) -> np.ndarray:
    """(H, W, 4): each window's constant, and its slope along each colour."""
    height, width = count.shape
    out = np.empty((height, width, 4), np.float32)
    for y in range(height):
        for x in range(width):
            n = count[y, x]
            p = sums[y, x, 0] / n
            r, g, b = mean[y, x, 0], mean[y, x, 1], mean[y, x, 2]
            u = sums[y, x, 1] / n - p * r
            v = sums[y, x, 2] / n - p * g
            w = sums[y, x, 3] / n - p * b
            m = inverse[y, x]
            s = m[0] * u + m[1] * v + m[2] * w
            t = m[1] * u + m[3] * v + m[4] * w
            q = m[2] * u + m[4] * v + m[5] * w
            out[y, x, 0] = p - s * r - t * g - q * b
            out[y, x, 1], out[y, x, 2], out[y, x, 3] = s, t, q
    return out


@njit(cache=True)
def _draw(
    fits: np.ndarray, guide: np.ndarray, mask: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Write into ``mask`` where the fit at a pixel's colour is above a half."""
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            value = fits[y, x, 0]
            for c in range(3):
                value += fits[y, x, c + 1] * guide[y, x, c]
            mask[y, x] = value > 0.5
