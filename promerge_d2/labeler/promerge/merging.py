"""Merging of masks, large to small (paper, section 3; docs/algorithm.md).

Shape letters: C channels, H and W rows and columns of the patch grid, P masks, M merged masks.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from promerge_d2.labeler.promerge.filtering import mean_feature, pack, unpack


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
    height, width = masks.shape[1:]

    @functools.cache
    def mean(bits: int) -> torch.Tensor:
        return mean_feature(unit, unpack([bits], height, width)[0]).cpu()

    clusters: list[int] = []
    for mask in sorted(pack(masks), key=int.bit_count, reverse=True):  # stable
        area, united, rest = mask.bit_count(), mask, []
        for cluster in clusters:
            share = (mask & cluster).bit_count() / area
            if share > tau_merge_ioa or (
                share > tau_merge_gate and mean(mask) @ mean(cluster) >= tau_merge_f
            ):
                united |= cluster
            else:
                rest.append(cluster)
        clusters = [*rest, united]
    # leading bits come first in reading order
    clusters.sort(key=lambda bits: (bits.bit_count(), bits.bit_length()), reverse=True)
    return unpack(clusters, height, width)
