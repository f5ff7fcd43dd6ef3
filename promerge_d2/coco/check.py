"""Check a pseudo-label file of any size, by whomever it was written."""

from __future__ import annotations

import collections
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from promerge_d2.coco.fields import Tally
from promerge_d2.coco.read import (
    CocoSource,
    iter_images,
    iter_objects,
    why_useless,
)
from promerge_d2.coco.records import ImageId, ImageInfo, Instance, RecordError, name_key
from promerge_d2.coco.table import ImageTable
from promerge_d2.utils.errors import UserError

BINS = 12  # of the histogram, and one more for images without masks
NO_REASON = "no reason given"

SizeOf = Callable[[str], tuple[int, int] | None]


@dataclass
class Validation(Tally):
    """What a label file holds, and what is wrong with it.

    Attributes:
        images: listed images.
        masks: annotations that are right and no crowds.
        masks_per_image: how many images have so many masks.
        empty: how many images have no mask, by reason (``"no reason given"``).
        scores: lowest and highest score; None where no mask has one.
    """

    images: int = 0
    masks: int = 0
    masks_per_image: dict[int, int] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)
    scores: tuple[float, float] | None = None

    def histogram(self) -> list[tuple[str, int]]:
        """Count images by their number of masks (``"0"``, ``"1-5"``).

        Example:
            >>> Validation(masks_per_image={0: 4, 1: 2, 3: 1}).histogram()
            [('0', 4), ('1', 2), ('2', 0), ('3', 1)]
        """
        most = max(self.masks_per_image, default=0)
        widths = (step * 10**power for power in range(9) for step in (1, 2, 5))
        width = next(width for width in widths if width * BINS >= most)
        bins = [("0", self.masks_per_image.get(0, 0))]
        for first in range(1, most + 1, width):
            numbers = range(first, first + width)
            name = str(first) if width == 1 else f"{first}-{numbers[-1]}"
            bins.append((name, sum(self.masks_per_image.get(n, 0) for n in numbers)))
        return bins


def validate_labels(path: str | os.PathLike, size_of: SizeOf | None = None) -> Validation:
    """Check a COCO file of one class or many.

    Every record that another tool would refuse or leave out is a problem, and so is what makes
    labels worse without stopping a tool. Records are gone through one by one; memory grows by some
    200 bytes an image and 24 an annotation.

    Args:
        path: the file.
        size_of: gives width and height of the upright photograph of a name, None where it is
            missing, and raises ``UserError`` where it cannot be read; None leaves photographs
            alone.

    Raises:
        UserError: it is not a COCO file.
    """
    source = CocoSource(path, "label file")
    if source.is_list:
        raise UserError(
            f"{path} is a bare list without images; make a COCO file of it first: promerge import"
        )
    check = _Check(size_of)
    rows = check.counted(source.records("images"))
    for image in iter_images(rows, source.name, check.table, need_name=True, damaged=check.damaged):
        check.image(image)
    for item in iter_objects(
        source.records("annotations"),
        check.table,
        source.name,
        tally=check.found,
        damaged=check.damaged,
    ):
        check.object(item)
    return check.finish()


class _Check:
    """The checks that need more than one record, with what they have to remember."""

    def __init__(self, size_of: SizeOf | None) -> None:
        self.found = Validation()
        self.table = ImageTable()
        self._size_of = size_of
        self._masks = array("i")
        self._reasons = array("i")
        self._reason_names: dict[str, int] = {NO_REASON: 0}
        self._names = array("q")  # hashes
        self._shapes = array("q")  # likewise
        self._places = array("q")  # of the objects, in the file
        self._lowest, self._highest = math.inf, -math.inf

    def counted(self, rows: Iterable[Any]) -> Iterator[Any]:
        for row in rows:
            self.found.images += 1
            yield row

    def damaged(self, error: RecordError) -> None:
        self.found.note(error.kind, error)

    def image(self, image: ImageInfo) -> None:
        self.table.add(image)
        self._masks.append(0)
        reason = image.reason or NO_REASON
        self._reasons.append(self._reason_names.setdefault(reason, len(self._reason_names)))
        self._names.append(hash(name_key(image.name)))
        if self._size_of is None:
            return
        try:
            size = self._size_of(image.name)
        except UserError as error:
            self.found.note("files that cannot be read", f"{image}: {error}")
            return
        listed = (image.width, image.height)
        if size is None:
            self.found.note("files missing", image.file_name)
        elif size != listed:
            swapped = ", swapped" if size == listed[::-1] else ""
            self.found.note(
                "sizes that disagree with the photograph",
                f"{image}: {image.width} x {image.height} in the labels, the photograph has "
                f"{size[0]} x {size[1]}{swapped}",
            )

    def object(self, item: Instance) -> None:
        if item.where.record.get("id") is None:
            self.found.note("objects without an id", item.where)
        if item.crowd:
            return
        self.found.masks += 1
        self._masks[self.table.rows[item.image_id]] += 1
        if item.where.record.get("score") is not None:
            self._lowest = min(self._lowest, item.score)
            self._highest = max(self._highest, item.score)
        if reason := why_useless(item, box_only=False):
            self.found.note(reason, item.where)
        rows, columns = self.table[item.image_id].size
        x, y, width, height = item.box
        # half a pixel is rounding
        if min(x, y) < -0.5 or x + width > columns + 0.5 or y + height > rows + 0.5:
            self.found.note(
                "boxes out of the image",
                f"{item.where}: [x, y, w, h] {[*item.box]} in {columns} x {rows}",
            )
        if item.rle is not None:
            self._shapes.append(hash((item.image_id, item.rle["counts"])))
            self._places.append(item.where.index)

    def finish(self) -> Validation:
        found = self.found
        for row in _repeated(self._shapes):
            place = f"annotations[{self._places[row]}]"
            found.note("masks that their image has twice", place)
        if (twice := _repeated(self._names)).size:
            ids: list[ImageId] = list(self.table)
            for row in twice:
                found.note("file names that occur twice", f"image id {ids[row]}")
        masks = np.array(self._masks, np.int64)
        numbers, counts = np.unique(masks, return_counts=True)
        found.masks_per_image = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        without = collections.Counter(np.array(self._reasons, np.int64)[masks == 0].tolist())
        names = list(self._reason_names)
        found.empty = {names[code]: count for code, count in sorted(without.items())}
        if self._highest >= self._lowest:
            found.scores = (self._lowest, self._highest)
        return found


def _repeated(values: array) -> np.ndarray:
    """Return the places whose value was there before, ascending."""
    numbers = np.array(values, np.int64)
    order = np.argsort(numbers, kind="stable")
    return np.sort(order[1:][numbers[order][1:] == numbers[order][:-1]])
