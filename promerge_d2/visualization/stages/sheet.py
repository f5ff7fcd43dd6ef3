"""All panels of an image on one sheet, with what was found and why there is no mask."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from promerge_d2.visualization.stages import promerge, regions
from promerge_d2.visualization.stages.view import COMMON, SIDE, Caption, Panel, View, counted

PANELS: dict[str, tuple[Panel, ...]] = {
    "promerge": promerge.PANELS,
    "regions": regions.PANELS,
}
"""By the labeler's name, in the order of its work; any other labeler has ``COMMON``."""

DPI = 100
# pixels
_COLUMNS, _GAP, _HEADING, _TITLE, _SCALE, _LINE, _BREAK = 5, 24, 98, 30, 34, 19, 6
_WIDTH = 63  # characters of a line
_BLACK, _GREY, _RED = "#141414", "#6e6e6e", "#d02020"


def draw_sheet(view: View) -> Figure:
    """Draw all panels of an image on one sheet.

    When there are no masks, the last panel that was reached says why; those after it are
    "not reached".

    Args:
        view: of ``view_stages``.

    Returns:
        A figure, for ``save_figure`` at ``DPI``.
    """
    figure = Figure(dpi=DPI)
    height, width = view.photo.shape[:2]
    reason = view.result.reason
    outcome = counted(view.result.records, "mask")
    if reason:
        outcome = f"no masks, since {view.labeler.reasons[reason]} ({reason})"
    cells = []
    for number, (title, draw) in enumerate(PANELS.get(view.labeler.name, COMMON), start=1):
        axes = figure.add_axes((0, 0, 1, 1), label=title)
        caption = draw(view, axes)
        axes.set_axis_off()
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        color = _BLACK if caption else _GREY
        axes.set_title(f"{number}  {title}", loc="left", size=_points(18), pad=6, color=color)
        cells.append((axes, caption))
    last = [axes for axes, caption in cells if caption][-1]
    depths = [
        _write(view, axes, caption, outcome if reason and axes is last else "")
        for axes, caption in cells
    ]

    rows = range(0, len(cells), _COLUMNS)
    bottoms = [_TITLE + height + max(depths[row : row + _COLUMNS]) + _GAP for row in rows]
    sheet_width = _GAP + min(len(cells), _COLUMNS) * (SIDE + _GAP)
    sheet_height = _HEADING + sum(bottoms)
    figure.set_size_inches(sheet_width / DPI, sheet_height / DPI)
    for index, (axes, _) in enumerate(cells):
        row, column = divmod(index, _COLUMNS)
        x, y = _GAP + column * (SIDE + _GAP), _HEADING + sum(bottoms[:row]) + _TITLE + height
        corner = x / sheet_width, 1 - y / sheet_height
        axes.set_position((*corner, width / sheet_width, height / sheet_height))
    left = _GAP / sheet_width
    words: dict[str, Any] = {"va": "top", "parse_math": False}
    name = view.name.encode(errors="backslashreplace").decode()  # a file's need not be UTF-8
    figure.text(left, 1 - _GAP / sheet_height, name, size=_points(24), **words)
    text = f"{view.labeler.title}, preset {view.preset}: {outcome}"
    color = _RED if reason else _BLACK
    figure.text(left, 1 - 60 / sheet_height, text, size=_points(16), color=color, **words)
    return figure


def _write(view: View, axes: Axes, caption: Caption | None, outcome: str) -> int:
    """Write the words below a panel; return how many pixels they take."""
    if caption is None:
        view.show(axes, np.full_like(view.photo, 238))
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "not reached", color=_GREY, size=_points(18), **middle)
        return 0
    depth = _BREAK
    if caption.colors is not None:
        height, width = view.photo.shape[:2]
        bar = axes.inset_axes((0, -15 / height, SIDE / width, 8 / height))
        _draw_scale(bar, caption.colors, caption.threshold)
        depth += _SCALE
    for text, color in ((caption.found, _BLACK), (outcome, _RED), (caption.shows, _GREY)):
        # a setting and its value stay on one line
        for line in textwrap.wrap(text.replace(" = ", "\u00a0=\u00a0"), _WIDTH):
            axes.annotate(
                line,
                xy=(0, 0),
                xycoords="axes fraction",
                xytext=(0, -_points(depth)),
                textcoords="offset points",
                va="top",
                color=color,
                size=_points(13),
                parse_math=False,
                annotation_clip=False,
            )
            depth += _LINE
        depth += _BREAK if text else 0
    return depth


def _draw_scale(bar: Axes, colors: ScalarMappable, threshold: float | None) -> None:
    """Draw the colour scale of a heat map: its ends, and the threshold between them."""
    ticks = [*colors.get_clim(), *([] if threshold is None else [threshold])]
    scale = bar.figure.colorbar(colors, cax=bar, orientation="horizontal", ticks=ticks, format="%g")
    scale.outline.set_visible(False)
    bar.tick_params(length=0, pad=3, labelsize=_points(13), labelcolor=_GREY)
    if threshold is not None:
        bar.axvline(threshold, -0.3, 1.5, color=_BLACK, linewidth=1.5, clip_on=False)


def _points(pixels: float) -> float:
    """Turn pixels into points, 72 to the inch."""
    return pixels * 72 / DPI
