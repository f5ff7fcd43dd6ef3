"""Cascade filter: masks that look like background leave (paper section 3; promerge.md C1 step 8).

Shape letters: C channels, H and W rows and columns of the patch grid, M masks, P kept masks.
"""

from __future__ import annotations

import numpy as np
import torch

FILTERS = ("cascade", "ioa", "feature", "none")


def mean_features(unit: torch.Tensor, masks: np.ndarray) -> torch.Tensor:
    """Mean of the unit features inside each mask, not normalised again (as the release).

    Args:
        unit: (C, H, W) normalised features.
        masks: (M, H, W) bool, none of them empty.

    Returns:
        (M, C) float32.
    """
    weights = torch.from_numpy(masks.reshape(-1, masks.shape[1] * masks.shape[2])).to(unit)
    return weights @ unit.flatten(1).T / weights.sum(dim=1, keepdim=True)


def pack(masks: np.ndarray) -> list[int]:
    """Masks as integers of H * W bits, on which ``&`` and ``bit_count`` cost next to nothing.

    Args:
        masks: (M, H, W) bool.

    Returns:
        M integers.
    """
    packed = np.packbits(masks.reshape(-1, masks.shape[1] * masks.shape[2]), axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in packed]


def cascade_filter(
    unit: torch.Tensor,
    foreground: np.ndarray,
    background: np.ndarray,
    kind: str = "cascade",
    tau_ioa: float = 0.8,
    tau_f: float = 0.1,
) -> np.ndarray:
    """Keep the masks that do not resemble the background.

    Masks are taken by ascending area (equal areas in the order given). ``new`` is what a mask
    adds to the union of those kept before. A mask is kept when ``|new & background| / |new|`` is
    below ``tau_ioa`` and the product of its mean feature with the background's is below
    ``tau_f``. A mask that adds nothing is dropped: this is how duplicates leave (in the release
    0/0 = NaN does the same).

    Args:
        unit: (C, H, W) normalised features.
        foreground: (M, H, W) bool, none empty.
        background: (H, W) bool, not empty unless ``kind`` is ``"none"``.
        kind: ``"cascade"`` for both tests, ``"ioa"`` or ``"feature"`` for one of them, ``"none"``
            to keep every mask.
        tau_ioa: share in [0, 1].
        tau_f: product of mean features in [-1, 1].

    Returns:
        (P, H, W) bool in the order of acceptance.
    """
    foreground = foreground[np.argsort(foreground.sum(axis=(1, 2)), kind="stable")]
    if kind == "none" or not len(foreground):
        return foreground
    if kind != "ioa":
        # this test depends on nothing kept before, and what it drops never joins the union
        similarity = mean_features(unit, foreground) @ mean_features(unit, background[None])[0]
        foreground = foreground[(similarity < tau_f).cpu().numpy()]
    (background_bits,) = pack(background[None])
    union, kept = 0, []
    for index, mask in enumerate(pack(foreground)):
        new = mask & ~union
        if not new:
            continue
        if kind == "feature" or (new & background_bits).bit_count() / new.bit_count() < tau_ioa:
            kept.append(index)
            union |= mask
    return foreground[kept]
