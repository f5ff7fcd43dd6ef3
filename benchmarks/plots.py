"""What the plots of both rooms share; ``promerge_d2.visualization.figures`` writes the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def beside(rows: int, index: int, count: int) -> tuple[np.ndarray, float]:
    """Place the bars of one of ``count`` figures: their middles (rows,), and their width.

    The bars of a row take 0.8 of its space of 1.
    """
    return np.arange(rows) + (index - (count - 1) / 2) * 0.8 / count, 0.8 / count


def bars(
    axis: Any,
    rows: Sequence[str],
    figures: Mapping[str, Sequence[float] | np.ndarray],
    stacked: bool = False,
    **options: Any,
) -> list[Any]:
    """Draw horizontal bars, the first row at the top.

    Args:
        axis: of matplotlib.
        rows: names, one a row.
        figures: by their name in the legend, a value a row.
        stacked: put the figures of a row behind each other; else one below the other.
        **options: of ``axis.barh``.

    Returns:
        The bars of each figure.
    """
    axis.set_yticks(range(len(rows)), rows)
    start = np.zeros(len(rows))
    drawn = []
    for index, (name, values) in enumerate(figures.items()):
        places, width = beside(len(rows), index, len(figures))
        if stacked:
            places, width = np.arange(len(rows)), 0.8
        drawn.append(axis.barh(places, values, width, left=start, label=name, **options))
        if stacked:
            start = start + values
    axis.set_ylim(len(rows) - 0.5, -0.5)
    return drawn
