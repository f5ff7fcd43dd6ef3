"""Figures of matplotlib, written whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from promerge_d2.utils.files import atomic_path
from promerge_d2.visualization.overlay import SOFTWARE


def save_figure(figure: Figure, file: Path, dpi: int = 110) -> None:
    """Write a figure; parent folders are made.

    Args:
        figure: what to write.
        file: a PNG, unless its name ends in ``.svg``.
        dpi: dots per inch.
    """
    kind = file.suffix.lstrip(".") or "png"
    # neither matplotlib's version nor the time has a place in the bytes
    metadata = {"png": {"Software": SOFTWARE}, "svg": {"Date": None}}.get(kind)
    with atomic_path(file) as part:
        figure.savefig(part, dpi=dpi, format=kind, metadata=metadata)


@contextlib.contextmanager
def picture(
    file: Path, figsize: tuple[float, float], dpi: int = 110, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and its axes to draw on; write it at the end.

    Args:
        file: see ``save_figure``.
        figsize: width and height in inches.
        dpi: dots per inch.
        **options: of ``Figure.subplots``.

    Yields:
        The figure, and its axes as an array of two dimensions.
    """
    figure = Figure(figsize=figsize)
    yield figure, figure.subplots(squeeze=False, **options)
    figure.tight_layout()
    save_figure(figure, file, dpi)
