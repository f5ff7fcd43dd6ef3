"""Check a pseudo-label file of any size, by whomever it was written."""

from __future__ import annotations

import collections
import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.coco.rle import to_rle
from promerge_d2.pseudo_labels.inputs import TarImage, find_image
from promerge_d2.utils.errors import UserError

NAMED = 5  # examples of each kind of problem
BINS = 12  # of the histogram, and one more for images without masks
_MAX_SIDE = 65535  # pixels; pycocotools counts the pixels of an image in 32 bits
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_TAG = 0x0112


@dataclass
class Validation:
    """What a label file holds, and what is wrong with it.

    Attributes:
        images: listed images.
        masks: annotations that are no crowds.
        masks_per_image: how many images have so many masks.
        empty: how many images have no mask, by reason (``"no reason given"``).
        scores: lowest and highest score; None where no mask has one.
        problems: how often each kind occurs.
        examples: the first of each kind, in words.
    """

    images: int = 0
    masks: int = 0
    masks_per_image: dict[int, int] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)
    scores: tuple[float, float] | None = None
    problems: collections.Counter = field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def histogram(self) -> list[tuple[str, int]]:
        """Numbers of masks (``"0"``, ``"1-5"``), and how many images have so many.

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

    def note(self, problem: str, example: str) -> None:
        """Count a problem."""
        self.problems[problem] += 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < NAMED:
            examples.append(example)


def validate_labels(
    path: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> Validation:
    """Check a COCO file of one class or many.

    Its parts are gone through one by one; memory grows by some 200 bytes an image and 16 a mask.

    Args:
        path: the file.
        image_root: where the images are: they are looked for, and their sizes compared (upright,
            as detectron2 reads them); None leaves the files alone.

    Raises:
        UserError: it is no COCO file.
    """
    check = _Check(os.fspath(path), None if image_root is None else Path(image_root))
    stream = JsonStream(path, "label file", spans=False)
    postponed = False
    for element in stream:
        if element.section == "images":
            check.image(element.value)
        elif element.section == "annotations":
            if "images" in stream.sections:
                check.annotation(element.value)
            else:
                postponed = True
    if stream.sections == [""]:
        raise UserError(
            f"{path} is a bare list without images; make a COCO file of it first: "
            "python tools/import_labels.py"
        )
    if missing := {"images", "annotations"} - set(stream.sections):
        raise UserError(f"{path} is no COCO file: it has no list {min(missing)!r}")
    if postponed:
        for element in JsonStream(path, "label file", spans=False):
            if element.section == "annotations":
                check.annotation(element.value)
    return check.finish()


class _Check:
    """The checks, with what they have to remember."""

    def __init__(self, path: str, image_root: Path | None) -> None:
        self.found = Validation()
        self._path = path
        self._root = image_root
        self._rows: dict[Any, int] = {}  # image id to place
        self._widths = array("i")
        self._heights = array("i")
        self._masks = array("i")
        self._reasons = array("i")
        self._reason_names: dict[str, int] = {"no reason given": 0}
        self._names = array("q")  # hashes
        self._ids = array("q")
        self._shapes = array("q")
        self._lowest, self._highest = math.inf, -math.inf

    def image(self, image: Any) -> None:
        place = self.found.images
        self.found.images += 1
        if not isinstance(image, dict) or not _hashable(image.get("id")):
            self.found.note("entries that cannot be read", f"images[{place}]: {str(image)[:100]}")
            return
        name, width, height = image.get("file_name"), image.get("width"), image.get("height")
        where = f"{name} (id {image['id']})"
        if image["id"] in self._rows:
            self.found.note("image ids that occur twice", where)
            return
        if not _is_side(width) or not _is_side(height):
            self.found.note("images without a size", f"{where}: {width} x {height}")
            width = height = 0
        self._rows[image["id"]] = len(self._rows)
        self._widths.append(width)
        self._heights.append(height)
        self._masks.append(0)
        reason = str(image.get("reason", "no reason given"))
        self._reasons.append(self._reason_names.setdefault(reason, len(self._reason_names)))
        self._names.append(hash(name))
        if self._root is not None and isinstance(name, str):
            self._file(name, width, height)

    def _file(self, name: str, width: int, height: int) -> None:
        found = find_image(self._root, name)
        if found is None:
            self.found.note("files missing", name)
            return
        try:
            with Image.open(found.open() if isinstance(found, TarImage) else found) as opened:
                size = opened.size
                if opened.getexif().get(_TAG) in _TURNED:
                    size = size[::-1]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            self.found.note("files that cannot be read", f"{name}: {error}")
            return
        if width and size != (width, height):
            swapped = ", swapped" if size == (height, width) else ""
            self.found.note(
                "sizes that disagree with the photograph",
                f"{name}: {width} x {height} in the labels, the photograph has "
                f"{size[0]} x {size[1]}{swapped}",
            )

    def annotation(self, annotation: Any) -> None:
        place = len(self._ids)
        where = f"annotations[{place}]"
        known = isinstance(annotation, dict) and _hashable(annotation.get("image_id"))
        named = known and _hashable(annotation.get("id"))
        self._ids.append(hash(annotation["id"]) if named else -2 - place)
        self._shapes.append(0)
        if not known:
            self.found.note("entries that cannot be read", f"{where}: {str(annotation)[:100]}")
            return
        if not named:
            self.found.note("objects without an id", where)
        where += f" (id {annotation.get('id')}, image {annotation['image_id']})"
        row = self._rows.get(annotation["image_id"])
        if row is None:
            self.found.note("objects of images that are not listed", where)
            return
        if annotation.get("iscrowd"):
            return
        self.found.masks += 1
        self._masks[row] += 1
        self._score(annotation, where)
        width, height = self._widths[row], self._heights[row]
        if width:
            self._box(annotation.get("bbox"), width, height, where)
            self._shapes[place] = self._mask(annotation, width, height, where)

    def _score(self, annotation: dict, where: str) -> None:
        if "score" not in annotation:
            return
        score = annotation["score"]
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not math.isfinite(score)
        ):
            self.found.note("scores that are no number", f"{where}: {score!r}")
            return
        self._lowest, self._highest = min(self._lowest, score), max(self._highest, score)

    def _box(self, box: Any, width: int, height: int, where: str) -> None:
        numbers = isinstance(box, list) and len(box) == 4
        if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
            self.found.note("boxes that cannot be read", f"{where}: {str(box)[:100]}")
            return
        x, y, w, h = box
        # half a pixel is rounding
        if min(x, y) < -0.5 or min(w, h) < 0 or x + w > width + 0.5 or y + h > height + 0.5:
            self.found.note(
                "boxes out of the image", f"{where}: [x, y, w, h] {box} in {width} x {height}"
            )

    def _mask(self, annotation: dict, width: int, height: int, where: str) -> int:
        """Check the mask; a hash of it and its image, or 0."""
        mask = annotation.get("segmentation")
        if not mask:
            self.found.note("objects without a mask", where)
            return 0
        size = mask.get("size") if isinstance(mask, dict) else None
        try:
            rle = to_rle(mask, height, width, where)
        except UserError as error:
            disagree = isinstance(size, list) and size != [height, width]
            kind = "sizes that disagree with the mask" if disagree else "masks that do not decode"
            self.found.note(kind, str(error))
            return 0
        if not mask_api.area(rle):
            self.found.note("empty masks", where)
        return hash((annotation["image_id"], rle["counts"]))

    def finish(self) -> Validation:
        found = self.found
        for place in _repeated(self._ids):
            found.note("annotation ids that occur twice", f"annotations[{place}]")
        for place in _repeated(self._shapes):
            if self._shapes[place]:
                found.note("masks that their image has twice", f"annotations[{place}]")
        twice = _repeated(self._names)
        if twice.size:
            ids = list(self._rows)
            for place in twice:
                found.note("file names that occur twice", f"image id {ids[place]}")
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
    """Places whose value was there before, ascending."""
    values = np.array(values, np.int64)
    order = np.argsort(values, kind="stable")
    return np.sort(order[1:][values[order][1:] == values[order][:-1]])


def _hashable(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and 0 < value <= _MAX_SIDE
