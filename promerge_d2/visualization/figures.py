"""Figures of matplotlib, written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promerge_d2.utils.files import atomic_path


@contextlib.contextmanager
def picture(file: Path, dpi: int = 110, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, written to a file at the end.

    Args:
        file: a PNG, unless its name ends otherwise (``.svg``).
        dpi: dots an inch.
        **options: of ``plt.subplots``; axes are always an array of two dimensions.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(squeeze=False, **options)
    kind = file.suffix.lstrip(".") or "png"
    try:
        yield figure, axes
        figure.tight_layout()
        with atomic_path(file) as part:  # matplotlib's version has no place in a PNG's bytes
            figure.savefig(
                part, dpi=dpi, format=kind, metadata={"Software": None} if kind == "png" else None
            )
    finally:
        plt.close(figure)
