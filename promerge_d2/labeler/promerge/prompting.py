"""Point prompting (paper, section 3; docs/algorithm.md).

Shape letters: C channels, H and W rows and columns of the patch grid, K prompts, M masks,
B background candidates. All coordinates are (row, column) of the patch grid.
"""

from __future__ import annotations

import numpy as np
import torch

from promerge_d2.labeler.components import label_components

SIDE_RULES = ("more_than_half", "at_least_half")


def prompt_grid(height: int, width: int, stride: int) -> np.ndarray:
    """Place prompts at rows and columns 0, stride, 2 * stride, ...

    Example: ``prompt_grid(3, 4, 2)`` is ``[[0, 0], [0, 2], [2, 0], [2, 2]]``.

    Args:
        height: rows of the grid, H.
        width: columns, W.
        stride: patches between prompts.

    Returns:
        (K, 2) int64 (row, column), row by row.
    """
    rows, columns = np.mgrid[0:height:stride, 0:width:stride]
    return np.stack([rows.ravel(), columns.ravel()], axis=1)


def prompt_masks(unit: torch.Tensor, prompts: np.ndarray, tau_b: float) -> np.ndarray:
    """Find each prompt's mask: the patches whose cosine with it exceeds ``tau_b``.

    Args:
        unit: (C, H, W) normalised features.
        prompts: (K, 2) (row, column).
        tau_b: cosine in [-1, 1], strict (paper: tau_b).

    Returns:
        (K, H, W) bool.
    """
    _, height, width = unit.shape
    flat = unit.flatten(1)
    index = torch.from_numpy(prompts[:, 0] * width + prompts[:, 1]).to(unit.device)
    affinity = flat.index_select(1, index).T.contiguous() @ flat  # all prompts in one product
    return (affinity.cpu().numpy() > tau_b).reshape(-1, height, width)  # numpy compares faster


def covers_sides(masks: np.ndarray, side_rule: str) -> np.ndarray:
    """Find the masks that cover at least two sides of the grid.

    Args:
        masks: (K, H, W) bool.
        side_rule: a side counts as covered when ``"at_least_half"`` of its patches are in the
            mask (the paper's words) or ``"more_than_half"`` (what the release's half-to-even
            rounding amounts to; docs/algorithm.md).

    Returns:
        (K,) bool.
    """
    sides = (masks[:, 0, :], masks[:, -1, :], masks[:, :, 0], masks[:, :, -1])
    twice = np.stack([2 * side.sum(axis=1) for side in sides])
    lengths = np.array([[side.shape[1]] for side in sides])
    covered = twice > lengths if side_rule == "more_than_half" else twice >= lengths
    return covered.sum(axis=0) >= 2


def split_components(masks: np.ndarray, prompts: np.ndarray, component_share: float) -> np.ndarray:
    """Split masks into components, dropping what is small beside the prompt's own.

    A component is kept, as a mask of its own, when its area is at least ``component_share`` times
    that of the component that holds the prompt. A mask without its prompt gives nothing.

    Args:
        masks: (K, H, W) bool.
        prompts: (K, 2) (row, column), the prompt of each mask.
        component_share: in [0, 1].

    Returns:
        (M, H, W) bool, by prompt, then by reading order of the component's first patch.
    """
    labels, areas = label_components(masks)
    own = labels[np.arange(len(masks)), prompts[:, 0], prompts[:, 1]]
    # labels rise from mask to mask, so that each one's highest tells whose the others are
    last = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    mask_of = np.repeat(np.arange(len(masks)), np.diff(last, prepend=0))  # by label, from 1
    own = own[mask_of]  # by component: the label of its prompt's own one; label 0 is none
    keep = np.flatnonzero((own > 0) & (areas[1:] >= component_share * areas[own]))
    return labels[mask_of[keep]] == (keep + 1).astype(labels.dtype)[:, None, None]


def point_prompting(
    unit: torch.Tensor,
    stride: int,
    tau_b: float,
    side_rule: str,
    component_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Make foreground masks and background candidates from a grid of point prompts.

    A prompt's mask that covers two sides or more becomes, whole, a background candidate; any
    other is split into components.

    Args:
        unit: (C, H, W) normalised features.
        stride: patches between prompts.
        tau_b: see ``prompt_masks``.
        side_rule: see ``covers_sides``.
        component_share: see ``split_components``.

    Returns:
        Foreground (M, H, W) bool and background candidates (B, H, W) bool.
    """
    prompts = prompt_grid(unit.shape[1], unit.shape[2], stride)
    masks = prompt_masks(unit, prompts, tau_b)
    is_background = covers_sides(masks, side_rule)
    foreground = split_components(masks[~is_background], prompts[~is_background], component_share)
    return foreground, masks[is_background]
