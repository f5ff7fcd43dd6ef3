"""Tiles: overlapping parts of the photograph that the network sees enlarged (our own).

Every tile has the patch grid of the whole, on a part of it: objects of a few patches become objects
of many. The tiles' regions and the whole's meet on a canvas of ``tiles`` times the grid's cells.

Shape letters: H and W rows and columns of the patch grid; a canvas has tiles * H x tiles * W cells.
"""

from __future__ import annotations

from itertools import product

import cv2
import numpy as np

from promerge_d2.labeler.regions.scoring import Frame

_SIDE = 1.2  # of a tile, in sides of its share of the canvas: neighbours overlap

Window = tuple[slice, slice]  # rows and columns of a canvas or photograph


def tile_windows(rows: int, columns: int, tiles: int) -> list[Window]:
    """Place the tiles on the canvas, row by row.

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
    rows_, columns_ = sides
    return list(product(rows_, columns_))


def on_photograph(window: Window, canvas: tuple[int, int], height: int, width: int) -> Window:
    """Find a window of the canvas on the photograph.

    Args:
        window: in cells of the canvas.
        canvas: its rows and columns.
        height: of the photograph, in pixels.
        width: likewise.

    Returns:
        The window in pixels.
    """
    rows, columns = (
        slice(round(part.start * pixels / cells), round(part.stop * pixels / cells))
        for part, cells, pixels in zip(window, canvas, (height, width), strict=True)
    )
    return rows, columns


def cut_sides(window: Window, canvas: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """Find the patches of a tile that lie where it is cut out of the photograph.

    Args:
        window: the tile's, in cells of the canvas.
        canvas: rows and columns of the canvas.
        rows: of the tile's patch grid, H.
        columns: W.

    Returns:
        (H, W) bool: the sides of the tile that are no sides of the photograph.
    """
    cut = np.zeros((rows, columns), bool)
    (top, bottom), (left, right) = ((part.start, part.stop) for part in window)
    cut[0] |= top > 0
    cut[-1] |= bottom < canvas[0]
    cut[:, 0] |= left > 0
    cut[:, -1] |= right < canvas[1]
    return cut


def frame_of_tile(
    whole: Frame, window: Window, canvas: tuple[int, int], rows: int, columns: int
) -> Frame:
    """Make the frame of a tile: what looks like background is asked of the whole photograph.

    The tile alone may show nothing but one object.

    Args:
        whole: the photograph's.
        window: the tile's, in cells of the canvas.
        canvas: rows and columns of the canvas.
        rows: of the tile's patch grid, H.
        columns: W.

    Returns:
        The frame.
    """

    def cut(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(cv2.resize(picture, canvas[::-1])[window], (columns, rows))

    share = np.prod(
        [(part.stop - part.start) / side for part, side in zip(window, canvas, strict=True)]
    )
    return Frame(cut(whole.resemblance), cut(whole.prominence), cut(whole.colours), float(share))
