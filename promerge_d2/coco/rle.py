"""COCO masks, checked before pycocotools' C code sees them.

That code trusts its input: runs that do not fill the image, or a truncated string, are read as
garbage or read past the end. Everything here runs in image pixels; ``size`` is COCO's
``[height, width]``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.records import RecordError

UNREADABLE = "masks that do not decode"  # kinds of RecordError
OTHER_SIZE = "sizes that disagree with the mask"

# Characters "P" to "o" go on, "0" to "O" end a number. _DIGITS of them hold 35 bits, enough for any
# difference of two 32-bit run lengths.
_DIGITS = 7
_AT_ONCE = 64  # strings, few enough for the processor's cache
_NUMBERS = re.compile(rb"(?:[P-o]{0,6}[0-O])*")


def parse_counts(counts: str | bytes) -> list[int]:
    """Read the run lengths out of a compressed RLE string (COCO's ``maskApi``: LEB128-like).

    Args:
        counts: the string: 6 bits a character from ``"0"`` on, the sixth meaning "goes on"; from
            the fourth run on, the difference to the run two before.

    Returns:
        The lengths of alternating runs of background and mask.

    Raises:
        ValueError: characters outside the alphabet, a truncated or an overlong number.

    Example:
        >>> parse_counts("52203")  # 0 and 3 are differences to the runs two before
        [5, 2, 2, 2, 5]
    """
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    if not _NUMBERS.fullmatch(text):
        raise ValueError(_reason(text))
    runs: list[int] = []
    value = shift = 0
    for char in text:  # masks have some hundred characters, for which numpy takes longer
        char -= 48
        value |= (char & 0x1F) << shift
        shift += 5
        if not char & 0x20:
            if char & 0x10:  # the sign of the last 5 bits
                value -= 1 << shift
            if len(runs) > 2:  # the first run stands alone, the next two have none to differ from
                value += runs[-2]
            runs.append(value)
            value = shift = 0
    return runs


def check_counts(texts: Sequence[bytes], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check many compressed RLE strings at once: can they be read, do they fill their images?

    Six times as fast as ``parse_counts`` for each.

    Args:
        texts: M strings.
        pixels: (M,) int64, the number of pixels of each one's image.

    Returns:
        (M,) bool, whether a string is right (``to_rle`` says what is wrong with the others), and
        (M,) int64, the area of the mask where it is.
    """
    good, area = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    rows = [row for row, text in enumerate(texts) if text]
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        good[some], area[some] = _check_some([texts[row] for row in some], pixels[some])
    return good, area


def _check_some(texts: list[bytes], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check strings that are not empty, see ``check_counts``."""
    lengths = np.array([len(text) for text in texts], np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8) - 48  # what is below wraps around
    stop = np.cumsum(lengths)
    good = np.maximum.reduceat(data, stop - lengths) < 64
    good &= data[stop - 1] & 0x20 == 0
    # numbers: the characters up to one without the sixth bit, or to the end of the string
    ends = data & 0x20 == 0
    ends[stop - 1] = True
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    shift = 5 * (np.arange(len(data)) - np.repeat(first, digits)).clip(max=_DIGITS)
    value = np.add.reduceat((data & 0x1F).astype(np.int64) << shift, first)
    value -= np.where(data[last] & 0x10, 1 << 5 * digits.clip(max=_DIGITS), 0)
    # runs: of each string the first as it is, then every second one sums up differences
    count = np.diff(np.cumsum(ends)[stop - 1], prepend=0)
    start = np.cumsum(count) - count
    good &= np.maximum.reduceat(digits, start) <= _DIGITS
    place = np.arange(len(value)) - np.repeat(start, count)
    for head in (1, 2):
        chain = np.flatnonzero((place % 2 == head % 2) & (place > 0))
        heads = np.flatnonzero(place[chain] == head)
        sums = np.cumsum(value[chain])
        before = sums[heads] - value[chain[heads]]
        value[chain] = sums - np.repeat(before, np.diff(heads, append=len(chain)))
    good &= np.minimum.reduceat(value, start) >= 0
    good &= np.add.reduceat(value, start) == pixels
    return good, np.add.reduceat(np.where(place % 2, value, 0), start)


def _reason(text: bytes) -> str:
    if any(not 48 <= char < 112 for char in text):
        return "it holds characters that no RLE string has"
    if text[-1] >= 80:
        return "the string is cut off in the middle of a number"
    return "it holds a number too large for a run length"


def to_rle(segmentation: Any, height: int, width: int, where: object) -> dict[str, Any]:
    """Turn any COCO segmentation into a compressed RLE that is safe to hand to pycocotools.

    Polygons are drawn and united as ``COCO.annToRLE`` does; see ``clean_polygons``.

    Args:
        segmentation: polygons (a list of flat ``[x, y, x, y, ...]`` lists, or one such list,
            pixels), or an RLE dict with ``size`` and ``counts``, compressed (str) or not (list of
            int).
        height: of the image, pixels.
        width: of the image, pixels.
        where: names the record in the message.

    Returns:
        ``{"size": [height, width], "counts": bytes}``.

    Raises:
        RecordError: the mask cannot be read, is of another size than the image, or has no polygon
            of three points.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width, where)
    polygons, _ = clean_polygons(segmentation, height, width, where)
    if not polygons:
        raise RecordError(UNREADABLE, f"{where}: no polygon of its mask has three points")
    return draw(polygons, height, width)


def draw(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    """Draw polygons that ``clean_polygons`` gave as one compressed RLE, see ``to_rle``."""
    return mask_api.merge(mask_api.frPyObjects(polygons, height, width))


def clean_polygons(
    segmentation: Any, height: int, width: int, where: object
) -> tuple[list[list[float]], int]:
    """Check polygons, and leave out the parts that enclose nothing: fewer than three points.

    Args:
        segmentation: see ``to_rle``.
        height: of the image, pixels.
        width: of the image, pixels.
        where: names the record in the message.

    Returns:
        The polygons of three points or more, and the number of stray parts that were left out.

    Raises:
        RecordError: it is not polygons, or a coordinate is no number or far outside the image.

    Example:
        >>> clean_polygons([[0, 0, 2, 0, 2, 2], [5, 5, 6, 5]], 9, 9, "")
        ([[0, 0, 2, 0, 2, 2]], 1)
    """
    if not isinstance(segmentation, list):
        raise RecordError(
            UNREADABLE,
            f"{where}: segmentation is {reprlib.repr(segmentation)}; it must be a list of polygons "
            "or an RLE with 'size' and 'counts'",
        )
    flat = bool(segmentation) and not any(isinstance(part, list) for part in segmentation)
    parts = [segmentation] if flat else segmentation
    for part in parts:
        _check_polygon(part, height, width, where)
    good = [part for part in parts if len(part) >= 6]
    return good, len(parts) - len(good)


def _checked_rle(rle: dict[str, Any], height: int, width: int, where: object) -> dict[str, Any]:
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        raise RecordError(UNREADABLE, f"{where}: its RLE segmentation has no {missing[0]!r}")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        if (
            not isinstance(size, list | tuple)
            or len(size) != 2
            or any(isinstance(n, bool) or not isinstance(n, int) for n in size)
        ):
            raise RecordError(
                UNREADABLE,
                f"{where}: its RLE size is {reprlib.repr(size)}; it must be [height, width]",
            )
        swapped = (
            " (height and width look swapped; promerge import puts that right)"
            if list(size) == [width, height]
            else ""
        )
        raise RecordError(
            OTHER_SIZE,
            f"{where}: its mask is {size[1]} x {size[0]} pixels (width x height), but the image is "
            f"{width} x {height}{swapped}; both must be of the original image",
        )
    try:
        runs = _runs_of(counts)
    except ValueError as error:
        raise RecordError(UNREADABLE, f"{where}: its RLE cannot be decoded: {error}") from error
    if runs and min(runs) < 0:
        raise RecordError(
            UNREADABLE, f"{where}: its RLE cannot be decoded: a run has a negative length"
        )
    if sum(runs) != height * width:
        raise RecordError(
            UNREADABLE,
            f"{where}: its RLE cannot be decoded: the runs do not add up to the "
            f"{height} x {width} = {height * width} pixels of the image",
        )
    if isinstance(counts, list):
        return mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": text}


def _runs_of(counts: Any) -> list[int]:
    if isinstance(counts, str | bytes):
        return parse_counts(counts)
    if not isinstance(counts, list):
        raise ValueError("'counts' is neither a string nor a list")
    if any(isinstance(run, bool) or not isinstance(run, int) for run in counts):
        raise ValueError("'counts' holds something that is not an integer")
    return counts


def _check_polygon(polygon: Any, height: int, width: int, where: object) -> None:
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise RecordError(
            UNREADABLE,
            f"{where}: the polygon {reprlib.repr(polygon)} is not a flat list [x, y, x, y, ...]",
        )
    for index, value in enumerate(polygon):
        side = height if index % 2 else width
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise RecordError(
                UNREADABLE,
                f"{where}: a polygon holds {reprlib.repr(value)}, which is no coordinate",
            )
        # pycocotools allocates by the length of the outline, so a wild point would eat the memory
        if not -side <= value <= 2 * side:
            raise RecordError(
                UNREADABLE,
                f"{where}: a polygon has the {'xy'[index % 2]} coordinate {reprlib.repr(value)}, "
                f"far outside the {width} x {height} image",
            )
