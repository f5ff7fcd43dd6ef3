"""Plots of an experiment's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.ablations.results import Row
from benchmarks.plots import bars, beside
from promerge_d2.visualization.figures import picture

AXES = {
    "masks": "masks an image",
    "empty": "images without a mask, %",
    "precision": "precision at IoU 0.5, %",
    "recall": "recall at IoU 0.5, %",
    "seconds": "seconds an image",
}
Panels = Sequence[Sequence[str]]
"""Figures side by side; those of one panel share its axis."""


def values(rows: Sequence[Row], column: str) -> np.ndarray:
    """Return a column as numbers; NaN where a cell is empty."""
    return np.array([float(row[column] or "nan") for row in rows])


def curves(rows: Sequence[Row], file: Path, column: str, panels: Panels, below: str = "") -> None:
    """Draw figures over a column of numbers; a column named ``below`` stands below its ticks."""
    rows = sorted(rows, key=lambda row: float(row[column]))
    with picture(file, ncols=len(panels), figsize=(4 * len(panels), 3.5)) as (_, axes):
        for axis, names in zip(axes[0], panels, strict=True):
            x = values(rows, column)
            for name in names:
                axis.plot(x, values(rows, name), "o-", markersize=4, label=name)
            if below:
                ticks = [f"{row[column]}\n{row[below]}" for row in rows]
                axis.set_xticks(x, ticks, fontsize=7)
            axis.set_xlabel(f"{column}, {below} below" if below else column)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.set_ylabel(_title(names))
            _legend(axis, names)


def named_bars(rows: Sequence[Row], file: Path, column: str, panels: Panels) -> None:
    """Draw figures of each row, which ``column`` names."""
    size = (3.6 * len(panels) + 1, 1.4 + 0.45 * len(rows))
    with picture(file, ncols=len(panels), figsize=size, sharey=True) as (_, axes):
        for axis, names in zip(axes[0], panels, strict=True):
            figures = {name: values(rows, name) for name in names}
            for drawn in bars(axis, [row[column] for row in rows], figures):
                axis.bar_label(drawn, fmt="%.3g", fontsize=7, padding=2)
            longest = np.nanmax([0, *np.concatenate(list(figures.values()))])
            axis.set_xlim(0, 1.2 * longest or 1)
            axis.set_xlabel(_title(names))
            _legend(axis, names)


def heatmaps(rows: Sequence[Row], file: Path, across: str, up: str, names: Sequence[str]) -> None:
    """Draw figures over two columns of numbers, a map each."""
    x, y = (sorted({row[column] for row in rows}, key=float) for column in (across, up))
    cells = [(y.index(row[up]), x.index(row[across])) for row in rows]
    size = (5.2 * len(names), 4.6)
    with picture(file, ncols=len(names), figsize=size) as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            table = np.full((len(y), len(x)), np.nan)
            for cell, value in zip(cells, values(rows, name), strict=True):
                table[cell] = value
            drawn = axis.imshow(table, origin="lower", cmap="viridis")
            figure.colorbar(drawn, shrink=0.8)
            for (row, column), value in np.ndenumerate(table):
                style = {"fontsize": 6, "ha": "center", "va": "center"}
                style["color"] = "white" if drawn.norm(value) < 0.6 else "black"
                axis.text(column, row, f"{value:.3g}", **style)
            axis.set_xticks(range(len(x)), x, rotation=90)
            axis.set_yticks(range(len(y)), y)
            axis.set(xlabel=across, ylabel=up, title=_title([name]))


def scenes(rows: Sequence[Row], file: Path, column: str, names: Sequence[str]) -> None:
    """Draw figures of each row below a scene of it, ``FOLDER/ROW/000.png`` beside the CSV."""
    with picture(file, nrows=2, ncols=len(rows), figsize=(2 * len(rows), 4)) as (figure, axes):
        for row, axis in zip(rows, axes[0], strict=True):
            scene = file.with_suffix("") / row[column] / "000.png"
            axis.imshow(Image.open(scene))
            axis.set_title(row[column])
            axis.axis("off")
        for axis in axes[1]:
            axis.remove()
        axis = figure.add_subplot(2, 1, 2)
        for index, name in enumerate(names):
            places, width = beside(len(rows), index, len(names))
            drawn = axis.bar(places, values(rows, name), width, label=_title([name]))
            axis.bar_label(drawn, fmt="%.0f", fontsize=7)
        axis.set(xlim=(-0.5, len(rows) - 0.5), ylim=(0, 110), xticks=[])
        axis.legend(
            fontsize=8, ncols=len(names), frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0)
        )


def _legend(axis: Any, names: Sequence[str]) -> None:
    """Draw a legend above the axis, where there is something to tell apart."""
    if len(names) > 1:
        axis.legend(
            fontsize=8, ncols=len(names), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1)
        )


def _title(names: Sequence[str]) -> str:
    return AXES.get(names[0], names[0]) if len(names) == 1 else "at IoU 0.5, %"
