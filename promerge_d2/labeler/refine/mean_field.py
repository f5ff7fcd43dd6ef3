"""Mean-field inference of the dense CRF for all masks of an image at once.

The model is the released one (docs/algorithm.md): two labels, Potts compatibility, a spatial and a
bilateral Gaussian kernel on the permutohedral lattice (Kraehenbuehl and Koltun, 2011). Three
things make it fast, none of them an approximation that shows:

* Two labels have one degree of freedom. With ``t = q(mask) - q(rest)`` the update of both labels
  becomes ``t = tanh((u + w_g G t + w_b B t) / 2)``, u the unary log odds (our own).
* All masks of an image share its lattice, and go through it side by side.
* Most pixels are soon sure. Only those that are not send and take messages; after three of the
  rounds all are asked again (our own).

Shape letters: P pixels, M masks.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from promerge_d2.labeler.refine.lattice import PermutohedralLattice, blur

_WIDTH = 4  # masks side by side; more would not fit the vector registers
_SURE = np.float32(12.0)  # log odds; the messages of both kernels add up to 17 at most
_REVIEWS = (0, 2, 5)  # the rounds after which all pixels are asked again


def infer_masks(
    image: np.ndarray,
    masks: np.ndarray,
    iterations: int,
    gaussian: dict[str, float],
    bilateral: dict[str, float],
) -> np.ndarray:
    """Refine masks by the dense CRF.

    Args:
        image: (h, w, 3) uint8 RGB.
        masks: (M, h, w) bool; the unary log odds are 1 inside and -1 outside.
        iterations: rounds of mean field.
        gaussian: ``sxy`` (pixels) and ``compat`` (weight) of the spatial kernel.
        bilateral: ``sxy``, ``srgb`` (levels of 0..255) and ``compat`` of the bilateral kernel.

    Returns:
        (M, h, w) bool, where the mask is the likelier label.
    """
    if not len(masks):
        return masks.copy()
    height, width = image.shape[:2]
    spatial = _spatial_lattice(height, width, gaussian["sxy"])
    colours = image.reshape(-1, 3).T / np.float32(bilateral["srgb"])
    joint = PermutohedralLattice(
        np.concatenate([_positions(height, width, bilateral["sxy"]), colours])
    )
    refined = np.empty_like(masks)
    for first in range(0, len(masks), _WIDTH):
        inside = masks[first : first + _WIDTH].reshape(-1, height * width)
        odds = _infer(
            np.ascontiguousarray(inside.T),
            joint.points,
            joint.weights,
            joint.neighbours,
            np.float32(joint.gain * bilateral["compat"]),
            spatial.points,
            spatial.weights,
            spatial.neighbours,
            np.float32(spatial.gain * gaussian["compat"]),
            iterations,
            (np.float32(0),) * len(inside),
        )
        refined[first : first + _WIDTH] = (odds > 0).T.reshape(-1, height, width)
    return refined


@functools.lru_cache(maxsize=8)
def _positions(height: int, width: int, deviation: float) -> np.ndarray:
    """Return column and row of every pixel (2, P) float32, in standard deviations."""
    rows, columns = np.divmod(np.arange(height * width, dtype=np.int64), width)
    return np.stack([columns, rows]).astype(np.float32) / np.float32(deviation)


@functools.lru_cache(maxsize=4)
def _spatial_lattice(height: int, width: int, deviation: float) -> PermutohedralLattice:
    """Make the lattice of positions alone, the same for all images of a size."""
    return PermutohedralLattice(_positions(height, width, deviation))


@njit(cache=True, boundscheck=False)
def _infer(  # pragma: no cover - compiled
    inside: np.ndarray,  # (P, M) bool
    points_b: np.ndarray,  # the bilateral kernel's lattice
    weights_b: np.ndarray,
    neighbours_b: np.ndarray,
    gain_b: np.float32,  # its gain times its weight in the model
    points_g: np.ndarray,  # the spatial kernel's lattice
    weights_g: np.ndarray,
    neighbours_g: np.ndarray,
    gain_g: np.float32,
    iterations: int,
    lanes: tuple[np.float32, ...],  # M numbers: its length is known to the compiler
) -> np.ndarray:
    """Return the log odds of the mask (P, M) after the last round."""
    count, width = len(inside), len(lanes)
    splat_b = np.zeros((neighbours_b.shape[1] + 1, width), np.float32)
    splat_g = np.zeros((neighbours_g.shape[1] + 1, width), np.float32)
    first_b, second_b = np.zeros_like(splat_b), np.zeros_like(splat_b)
    first_g, second_g = np.zeros_like(splat_g), np.zeros_like(splat_g)
    odds = np.empty((count, width), np.float32)
    belief = np.zeros((count, width), np.float32)  # t = q(mask) - q(rest)
    change = np.empty(width, np.float32)
    total = np.empty(width, np.float32)
    active = np.arange(count).astype(np.int32)
    asked = count
    for iteration in range(iterations + 1):
        if iteration:
            blurred_b = blur(splat_b, neighbours_b, first_b, second_b, lanes)
            blurred_g = blur(splat_g, neighbours_g, first_g, second_g, lanes)
        for i in range(asked):
            p = active[i]
            total[:] = 0
            if iteration:  # slice: take the messages
                for k in range(points_b.shape[1]):
                    v, weight = points_b[p, k], gain_b * weights_b[p, k]
                    for m in range(width):
                        total[m] += weight * blurred_b[v, m]
                for k in range(points_g.shape[1]):
                    v, weight = points_g[p, k], gain_g * weights_g[p, k]
                    for m in range(width):
                        total[m] += weight * blurred_g[v, m]
            has_changed = False
            for m in range(width):
                value = total[m] + (np.float32(1) if inside[p, m] else np.float32(-1))
                odds[p, m] = value
                if value > 16:  # tanh is 1 to all digits that count
                    new = np.float32(1)
                elif value < -16:
                    new = np.float32(-1)
                else:
                    new = np.float32(1) - np.float32(2) / (np.float32(1) + np.exp(value))
                change[m] = new - belief[p, m]
                has_changed = has_changed or abs(change[m]) > np.float32(1e-6)
                belief[p, m] = new
            if has_changed and iteration < iterations:  # splat: send the difference
                for k in range(points_b.shape[1]):
                    v, weight = points_b[p, k], weights_b[p, k]
                    for m in range(width):
                        splat_b[v, m] += weight * change[m]
                for k in range(points_g.shape[1]):
                    v, weight = points_g[p, k], weights_g[p, k]
                    for m in range(width):
                        splat_g[v, m] += weight * change[m]
        if iteration in _REVIEWS:
            asked = count
            for i in range(count):
                active[i] = i
        else:
            kept = 0
            for i in range(asked):
                p = active[i]
                is_unsure = False
                for m in range(width):
                    is_unsure = is_unsure or abs(odds[p, m]) < _SURE
                if is_unsure:
                    active[kept] = p
                    kept += 1
            asked = kept
    return odds
