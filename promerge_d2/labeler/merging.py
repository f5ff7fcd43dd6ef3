"""Merging of masks, large to small (paper section 3; promerge.md C1 step 9).

Shape letters: C channels, H and W rows and columns of the patch grid, P masks, M merged masks.
"""

from __future__ import annotations

import numpy as np
import torch

from promerge_d2.labeler.filtering import mean_features


def merge_masks(
    unit: torch.Tensor,
    masks: np.ndarray,
    tau_merge_ioa: float = 0.5,
    tau_merge_gate: float = 0.1,
    tau_merge_f: float = 0.1,
) -> np.ndarray:
    """Unite masks with the clusters that they overlap.

    Masks are taken by descending area (equal areas in the order given). With
    ``q = |mask & cluster| / |mask|``, a mask joins every cluster for which ``q > tau_merge_ioa``,
    or ``q > tau_merge_gate`` and the product of the mean features is at least ``tau_merge_f``;
    all that it joins become one. One pass.

    Args:
        unit: (C, H, W) normalised features.
        masks: (P, H, W) bool, none empty.
        tau_merge_ioa: share in [0, 1] (paper: tau_merge^IoA).
        tau_merge_gate: share in [0, 1] below which features are not asked (release only).
        tau_merge_f: product of mean features (paper: tau_merge^f).

    Returns:
        (M, H, W) bool by descending area, equal areas by their first patch in reading order.
    """
    areas = masks.sum(axis=(1, 2))
    clusters = np.zeros_like(masks)  # the first `count` rows are in use
    count = 0
    for index in np.argsort(-areas, kind="stable"):
        mask = masks[index]
        share = np.count_nonzero(clusters[:count] & mask, axis=(1, 2)) / areas[index]
        joins = share > tau_merge_ioa
        unsure = np.flatnonzero((share > tau_merge_gate) & ~joins)
        if len(unsure):
            means = mean_features(unit, np.concatenate([clusters[unsure], mask[None]]))
            joins[unsure] = (means[:-1] @ means[-1] >= tau_merge_f).cpu().numpy()
        rest = clusters[:count][~joins]
        united = clusters[:count][joins].any(axis=0) | mask
        count = len(rest) + 1
        clusters[: count - 1] = rest
        clusters[count - 1] = united
    return by_area(clusters[:count])


def by_area(masks: np.ndarray) -> np.ndarray:
    """Order masks (M, H, W) by descending area, then by their first patch in reading order."""
    flat = masks.reshape(-1, masks.shape[1] * masks.shape[2])
    return masks[np.lexsort((flat.argmax(axis=1), -flat.sum(axis=1)))]
