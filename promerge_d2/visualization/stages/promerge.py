"""Panels of the labeler ``promerge``, in the order of its stages.

Shape letters: see ``view``; K prompts.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes

from promerge_d2.labeler.promerge.prompting import covers_sides, prompt_grid, prompt_masks
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.visualization.stages.view import OPENING, REFINED, Caption, Panel, View, counted

_TILES = 2  # prompts whose affinity is drawn, by row and by column
_LEFT = {
    "tau_f": "resemble the background (tau_f)",
    "new": "add nothing to smaller ones",
    "tau_ioa": "lie on the background (tau_ioa)",
}
_RED, _GREEN = "#eb2828", "#28c846"  # background candidates, foreground


def prompts(view: View, axes: Axes) -> Caption:
    """Draw the prompts, by what became of their masks."""
    points, _, is_background = _prompted(view)
    view.show(axes, view.photo // 2 + 64)  # faint
    axes.scatter(*_centers(view, points), s=36, c=_colors(is_background), edgecolors="black")
    background = np.count_nonzero(is_background)
    return Caption(
        f"{view.settings('stride', 'tau_b', 'side_rule')}: {counted(points, 'prompt')}, "
        f"{background} red, {len(points) - background} green",
        "Each dot asks which patches are like its own. Red: they cover two sides of the image, a "
        "background candidate. Green: their parts are foreground masks. Lower stride for more "
        "prompts and smaller objects.",
    )


def affinity(view: View, axes: Axes) -> Caption:
    """Draw the affinity and the masks of a few prompts that differ."""
    tau_b = view.config.tau_b
    points, masks, is_background = _prompted(view)
    unit = l2_normalize(view.features)
    cosines = torch.einsum("ck,chw->khw", unit[:, points[:, 0], points[:, 1]], unit).numpy()
    between = cosines[:, points[:, 0], points[:, 1]]
    chosen = differing(between, int(masks.sum(axis=(1, 2)).argmax()), _TILES**2)
    size = 1 / _TILES - 0.005
    for place, index in enumerate(chosen):
        row, column = divmod(place, _TILES)
        tile = axes.inset_axes((column / _TILES, 1 - row / _TILES - size, size, size))
        tile.set_axis_off()
        colors = view.show_heat(tile, cosines[index], min(0.0, tau_b), 1.0)
        view.outline(tile, masks[index], 0.8)
        x, y = _centers(view, points[index : index + 1])
        tile.plot(x, y, "+", color="black", markersize=13, markeredgewidth=4.5)
        color = _colors(is_background[index : index + 1])[0]
        tile.plot(x, y, "+", color=color, markersize=11.5, markeredgewidth=2.5)
        tile.set_aspect("auto")
    return Caption(
        f"{view.settings('tau_b')}: {len(chosen)} of {counted(points, 'prompt')} drawn, unlike one "
        "another",
        "Cosine of every patch with the prompt at the cross (red and green as before). Inside the "
        "line it exceeds tau_b: the prompt's mask. Raise tau_b for smaller masks.",
        colors,
        tau_b,
    )


def foreground(view: View, axes: Axes) -> Caption:
    """Draw where the foreground masks are."""
    stages = view.stages
    counts = stages.foreground.sum(axis=0)
    return Caption(
        f"{view.settings('tau_b', 'component_share')}: "
        f"{counted(stages.foreground, 'foreground mask')}, "
        f"{counted(stages.candidates, 'background candidate')}",
        "How many foreground masks a patch is in. An object that is in none is lost here. Lower "
        "component_share to keep smaller parts.",
        view.show_heat(axes, counts, 0, max(1, counts.max())),
    )


def background(view: View, axes: Axes) -> Caption | None:
    """Draw the background vote."""
    stages, config = view.stages, view.config
    if not len(stages.foreground):
        return None
    candidates = stages.candidates
    colors = view.show_heat(axes, candidates.sum(axis=0) / max(1, len(candidates)))
    found = counted(candidates, "background candidate")
    if stages.background is not None:
        view.outline(axes, stages.background)
        found += f", {stages.background.mean():.0%} of the grid is background"
    elif config.background_filter == "none":
        found += ", not used (background_filter = none)"
    return Caption(
        f"{view.settings('background_vote', 'min_background')}: {found}",
        "Share of the candidates that a patch is in. Inside the line it exceeds background_vote: "
        "the background. Raise background_vote for less of it.",
        colors,
        config.background_vote,
    )


def pruned(view: View, axes: Axes) -> Caption | None:
    """Draw the masks that the cascade filter kept."""
    stages = view.stages
    if stages.pruned is None:
        return None
    view.show_masks(axes, stages.pruned)
    left = "".join(f"; {count} {_LEFT[test]}" for test, count in stages.left.items() if count)
    return Caption(
        f"{view.settings('background_filter', 'tau_f', 'tau_ioa')}: {len(stages.pruned)} of "
        f"{counted(stages.foreground, 'mask')} kept{left}",
        "The masks kept. Raise tau_f or tau_ioa to keep more.",
    )


def merged(view: View, axes: Axes) -> Caption | None:
    """Draw the masks after merging."""
    stages = view.stages
    if stages.merged is None or not len(stages.merged):
        return None
    view.show_masks(axes, stages.merged)
    names = ("tau_merge_ioa", "tau_merge_gate", "tau_merge_f")
    return Caption(
        f"{view.settings(*names)}: {len(stages.pruned)} became {counted(stages.merged, 'mask')}",
        "Overlapping masks united. An object in parts: lower these thresholds. Several objects in "
        "one mask: raise them, or tau_b.",
    )


PANELS: tuple[Panel, ...] = (
    *OPENING,
    ("Prompts", prompts),
    ("Affinity of some prompts", affinity),
    ("Foreground masks", foreground),
    ("Background vote", background),
    ("Pruned", pruned),
    ("Merged", merged),
    REFINED,
)


def differing(between: np.ndarray, first: int, count: int) -> list[int]:
    """Choose prompts that show what there is: each is the least like those before it.

    Example: the cosines ``[[1, 0.9, 0], [0.9, 1, 0.1], [0, 0.1, 1]]`` give, from 0, the order
    ``[0, 2, 1]``.

    Args:
        between: (K, K) cosines.
        first: the index to begin with.
        count: how many, at most.

    Returns:
        Indices.
    """
    chosen = [first]
    while len(chosen) < min(count, len(between)):
        nearest = between[chosen].max(axis=0)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen


def _prompted(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give prompts (K, 2), their masks (K, H, W), and which are background candidates (K,)."""
    config = view.config
    _, rows, columns = view.features.shape
    points = prompt_grid(rows, columns, config.stride)
    masks = prompt_masks(l2_normalize(view.features), points, config.tau_b)
    return points, masks, covers_sides(masks, config.side_rule)


def _centers(view: View, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the x and y (K,) of the centres of patches (K, 2) on a panel."""
    y, x = ((points + 0.5) / view.features.shape[1:] * view.photo.shape[:2]).T
    return x, y


def _colors(is_background: np.ndarray) -> list[str]:
    return [_RED if background else _GREEN for background in is_background]
