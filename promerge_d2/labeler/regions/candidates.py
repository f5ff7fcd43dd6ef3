"""Candidates: the regions of several merge trees, each of another view of the features (our own).

The network's feature is split into its principal components. As they are, the few strong ones
decide what merges: they tell the kinds of stuff apart. Weakened by a power of their variance
(a step towards whitening) they let finer differences speak: what merges then are parts and smaller
objects. Trees of different powers find different objects; each costs a few hundredths of a second.

A tree has the rider with the horse, and the rider, but not the horse alone. ``remainders`` are
what is left of the best regions when a part is taken away.

Shape letters: C channels, D components, H and W rows and columns of the patch grid, N = H * W
patches, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promerge_d2.labeler.regions.merge_tree import merge_tree, tree_masks

SPECTRA = ((64, 0.0), (64, -0.25), (32, -0.5))
"""Of each tree: how many components, and the power of their variance that weighs them."""

INSIDE = 0.95  # of a part lies within its whole
PART = (0.1, 0.8)  # of the whole's area a part has more, and less, than


@dataclass(frozen=True)
class Candidates:
    """What may be an object, and what it was found in.

    Attributes:
        maps: a map (D, H, W) of unit features for each of ``SPECTRA``.
        trees: the children (N - 1, 2) of ``merge_tree`` of each map.
        masks: (M, H, W) bool, no two alike, in the order of the trees and of merging.
    """

    maps: list[np.ndarray]
    trees: list[np.ndarray]
    masks: np.ndarray


def find_candidates(unit: np.ndarray, min_patches: int, max_share: float) -> Candidates:
    """Collect the regions of the merge trees of an image.

    Args:
        unit: (C, H, W) float32 normalised features.
        min_patches: smaller regions are left out.
        max_share: regions of more than this share of the grid are left out.

    Returns:
        The candidates.
    """
    maps = principal_maps(unit, SPECTRA)
    trees = [merge_tree(features)[0] for features in maps]
    _, height, width = unit.shape
    masks = [tree_masks(tree, height, width, min_patches, max_share) for tree in trees]
    return Candidates(maps, trees, without_duplicates(masks))


def remainders(masks: np.ndarray, min_patches: int) -> np.ndarray:
    """Take parts away from their wholes.

    Example: of ``[[[1, 1, 1]], [[1, 0, 0]]]`` it is ``[[[0, 1, 1]]]``.

    Args:
        masks: (M, H, W) bool, none empty.
        min_patches: smaller remainders are left out.

    Returns:
        (K, H, W) bool, no two alike and none like one of ``masks``: each mask less each one
        that lies within it (all but a twentieth) and has a tenth to four fifths of its area.
    """
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    areas = np.count_nonzero(flat, axis=1)
    columns = flat.T.astype(np.float32)
    shares = areas / areas[:, None]
    is_part = (columns.T @ columns > INSIDE * areas) & (shares > PART[0]) & (shares < PART[1])
    whole, part = np.nonzero(is_part)
    left = flat[whole] & ~flat[part]
    left = left[np.count_nonzero(left, axis=1) >= min_patches].reshape(-1, *masks.shape[1:])
    return without_duplicates([masks, left])[len(masks) :]


def principal_maps(unit: np.ndarray, spectra: tuple[tuple[int, float], ...]) -> list[np.ndarray]:
    """Split features into principal components, and weigh these in several ways.

    Args:
        unit: (C, H, W) float32 normalised features.
        spectra: for each map how many components, the strongest first (no more than there are),
            and a power: a component of variance v is multiplied by ``v ** power``.

    Returns:
        For each (D, H, W) float32, of norm one at each patch (or zero, where the feature is).
    """
    channels, height, width = unit.shape
    flat = unit.reshape(channels, -1)
    variance, axes = np.linalg.eigh(flat @ flat.T / flat.shape[1])
    variance, axes = variance[::-1], axes[:, ::-1]
    count = max(1, np.count_nonzero(variance > 1e-6 * variance[0]))  # the rest is rounding
    variance, axes = np.maximum(variance[:count], 1e-12), axes[:, :count]
    components = axes.T @ flat
    maps = []
    for most, power in spectra:
        weighed = components[:most] * (variance[:most, None] / variance[0]) ** power
        norms = np.sqrt(np.square(weighed).sum(axis=0))
        weighed /= np.where(norms > 0, norms, 1)
        maps.append(weighed.reshape(-1, height, width).astype(np.float32))
    return maps


def without_duplicates(sets: list[np.ndarray]) -> np.ndarray:
    """Join sets of masks (M, H, W) bool, without those that are the same as an earlier one."""
    seen: set[bytes] = set()
    kept = []
    for masks in sets:
        packed = np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
        new = []
        for index, row in enumerate(map(bytes, packed)):
            if row not in seen:
                seen.add(row)
                new.append(index)
        kept.append(masks[new])
    return np.concatenate(kept)
