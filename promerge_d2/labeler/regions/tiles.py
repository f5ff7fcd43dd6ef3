"""Tiles: overlapping parts of the photograph that the network sees enlarged (our own).

Every tile has the patch grid of the whole, on a part of it: objects of a few patches become objects
of many. The tiles' regions and the whole's meet on a canvas of ``tiles`` times the grid's cells.

Shape letters: H and W rows and columns of the patch grid; a canvas has tiles * H x tiles * W cells.
"""

from __future__ import annotations

from itertools import product

import numpy as np

_SIDE = 1.2  # of a tile, in sides of its share of the canvas: neighbours overlap

Window = tuple[slice, slice]  # rows and columns of a canvas or photograph


def tile_windows(rows: int, columns: int, tiles: int) -> list[Window]:
    """Where the tiles lie on the canvas, row by row.

    Example: ``tile_windows(10, 20, 2)`` are four of 12 x 24 cells on 20 x 40, the first from (0, 0)
    and the last from (8, 16).

    Args:
        rows: of the patch grid, H.
        columns: W.
        tiles: along each side; 1 has none, the whole alone.

    Returns:
        ``tiles * tiles`` windows in cells.
    """
    if tiles == 1:
        return []
    sides = []
    for side in (rows, columns):
        length = round(_SIDE * side)
        starts = np.linspace(0, tiles * side - length, tiles).round().astype(int).tolist()
        sides.append([slice(start, start + length) for start in starts])
    return list(product(*sides))


def on_photograph(window: Window, canvas: tuple[int, int], height: int, width: int) -> Window:
    """A window of the canvas in pixels of a photograph of height x width."""
    return tuple(
        slice(round(part.start * pixels / cells), round(part.stop * pixels / cells))
        for part, cells, pixels in zip(window, canvas, (height, width), strict=True)
    )


def cut_sides(window: Window, canvas: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """Patches (H, W) bool of a tile that lie where it is cut out of the photograph."""
    cut = np.zeros((rows, columns), bool)
    (top, bottom), (left, right) = ((part.start, part.stop) for part in window)
    cut[0] |= top > 0
    cut[-1] |= bottom < canvas[0]
    cut[:, 0] |= left > 0
    cut[:, -1] |= right < canvas[1]
    return cut
