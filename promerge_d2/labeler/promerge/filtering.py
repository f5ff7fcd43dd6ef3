"""Cascade filter: masks that look like background leave (paper, section 3; docs/algorithm.md).

Shape letters: C channels, H and W rows and columns of the patch grid, M masks, P kept masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

FILTERS = ("cascade", "ioa", "feature", "none")


def mean_feature(unit: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """Average the unit features inside a mask, without normalising again (as the release).

    Args:
        unit: (C, H, W) normalised features.
        mask: (H, W) bool, not empty.

    Returns:
        (C,) float32.
    """
    return unit.flatten(1) @ _as_numbers(mask.ravel(), unit) / int(mask.sum())


def pack(masks: np.ndarray) -> list[int]:
    """Turn masks into integers of H * W bits: ``&`` and ``bit_count`` cost next to nothing.

    Args:
        masks: (M, H, W) bool.

    Returns:
        M integers.
    """
    packed = np.packbits(masks.reshape(-1, masks.shape[1] * masks.shape[2]), axis=1)
    return [int.from_bytes(row, "big") for row in packed]


def unpack(packed: Sequence[int], height: int, width: int) -> np.ndarray:
    """Turn integers into masks again, see ``pack``.

    Args:
        packed: M integers.
        height: rows of the grid, H.
        width: columns, W.

    Returns:
        (M, H, W) bool.
    """
    length = -(-height * width // 8)
    rows = np.frombuffer(b"".join(bits.to_bytes(length, "big") for bits in packed), np.uint8)
    flat = np.unpackbits(rows.reshape(-1, length), axis=1, count=height * width)
    return flat.reshape(-1, height, width).astype(bool)


def cascade_filter(
    unit: torch.Tensor,
    foreground: np.ndarray,
    background: np.ndarray | None,
    kind: str = "cascade",
    tau_ioa: float = 0.8,
    tau_f: float = 0.1,
) -> tuple[np.ndarray, dict[str, int]]:
    """Keep the masks that do not resemble the background.

    Masks are taken by ascending area (equal areas in the order given). ``new`` is what a mask
    adds to the union of those kept before. A mask is kept when ``|new & background| / |new|`` is
    below ``tau_ioa`` and the product of its mean feature with the background's is below
    ``tau_f``. A mask that adds nothing is dropped: this is how duplicates leave (in the release
    0/0 = NaN does the same).

    Args:
        unit: (C, H, W) normalised features.
        foreground: (M, H, W) bool, none empty.
        background: (H, W) bool, not empty; may be None if ``kind`` is ``"none"``.
        kind: ``"cascade"`` for both tests, ``"ioa"`` or ``"feature"`` for one of them, ``"none"``
            to keep every mask.
        tau_ioa: share in [0, 1].
        tau_f: product of mean features in [-1, 1].

    Returns:
        (P, H, W) bool in the order of acceptance, and how many masks left by the test that they
        failed: ``tau_f``, ``tau_ioa``, or ``new`` for those that add nothing.
    """
    packed = pack(foreground)
    areas = np.array([mask.bit_count() for mask in packed])
    order = np.argsort(areas, kind="stable")
    left = {"tau_f": 0, "new": 0, "tau_ioa": 0}
    if kind == "none" or not len(order):
        return foreground[order], left
    assert background is not None
    if kind != "ioa":
        # this test depends on nothing kept before, and what it drops never joins the union
        # a mask's mean product is that of its patches' products, made once for all masks
        products = mean_feature(unit, background) @ unit.flatten(1)
        inside = _as_numbers(foreground.reshape(len(foreground), -1), unit)
        similarity = (inside @ products).cpu().numpy() / areas
        order = order[similarity[order] < tau_f]
        left["tau_f"] = len(areas) - len(order)
    (background_bits,) = pack(background[None])
    union, kept = 0, []
    for index in order:
        new = packed[index] & ~union
        if not new:
            left["new"] += 1
        elif kind == "feature" or (new & background_bits).bit_count() / new.bit_count() < tau_ioa:
            kept.append(index)
            union |= packed[index]
        else:
            left["tau_ioa"] += 1
    return foreground[kept], left


def _as_numbers(masks: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Make a bool array a tensor of another's type and device."""
    numbers = torch.from_numpy(masks.view(np.uint8))  # from bool torch takes six times longer
    return numbers.to(like.device).to(like.dtype)  # bytes travel
