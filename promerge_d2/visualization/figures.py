"""Figures of matplotlib, written whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
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


def read_losses(file: Path) -> list[dict]:
    """Read what detectron2 logged in ``metrics.json``, by iteration.

    Of an iteration that a stopped run had logged before it went on from a checkpoint, the later
    entry counts. A line that was being written when the run was killed is left out.

    Args:
        file: ``metrics.json``.

    Returns:
        Dicts with ``iteration``, ``total_loss`` and the other losses.
    """
    logged = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "total_loss" in entry:
            logged[entry["iteration"]] = entry
    return [logged[iteration] for iteration in sorted(logged)]


def plot_losses(runs: Mapping[str, Sequence[dict]], path: Path) -> None:
    """Draw the losses of trainings, one panel each, as a PNG.

    Args:
        runs: title to what ``read_losses`` gave; not empty.
        path: where to.
    """
    size = (3 + 5 * len(runs), 3.2)
    with picture(path, dpi=150, ncols=len(runs), figsize=size, sharey=True) as (_, axes):
        for panel, (title, logged) in zip(axes[0], runs.items(), strict=True):
            iterations = [entry["iteration"] for entry in logged]
            names = {name for entry in logged for name in entry if "loss" in name}
            for name in sorted(name for name in names if "droploss" not in name):
                style: dict[str, Any] = {"linewidth": 1}
                if name == "total_loss":
                    style = {"linewidth": 2.5, "color": "black", "zorder": 3}
                losses = [entry.get(name, float("nan")) for entry in logged]
                panel.plot(iterations, losses, label=name, **style)
            panel.set(title=title, xlabel="iteration", yscale="log")
        axes[0, 0].set(ylabel="loss (median of 20)")
        axes[0, -1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
