"""A COCO file of any size, read image by image.

Memory holds where the JSON of each image and each annotation is in the file, its score and its
area: 32 bytes an image and 25 an annotation (while the file is indexed, some 150 and 40).
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from promerge_d2.coco.fields import Tally
from promerge_d2.coco.json_stream import Element
from promerge_d2.coco.read import (
    CocoSource,
    id_order,
    iter_images,
    iter_objects,
    read_images,
    why_useless,
)
from promerge_d2.coco.records import ImageInfo, Instance, RecordError
from promerge_d2.coco.table import ImageTable
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path

Stamp = tuple[int, int]  # size and time of a file
_ARRAYS = ("_images", "_annotations", "first", "scores", "areas", "is_plain")
Spans = tuple[int, ...]  # first byte of an image and the one after its last, then its annotations'


class CocoIndex:
    """Where the images of a COCO file are, sorted by id, and their annotations.

    Every record is checked; polygons are not drawn.

    Args:
        path: the COCO JSON; it must stay as it is while it is in use.
        damaged: takes the error of each record that is refused, and the record is left out; None
            raises it.

    Attributes:
        path: the file.
        stamp: its size and time.
        box_only: whether there are objects and not one of them has a mask.
        tally: what is left out by ``read_image``, as far as it shows without drawing polygons.
        first: (N + 1,) int64, the row of each image's first annotation below, and their number A.
        scores: (A,) float32, in the order of ``read``.
        areas: (A,) float32, pixels; of polygons without ``area`` that of the box.
        is_plain: (A,) bool, whether it has a mask that is no crowd and, as far as it shows without
            drawing polygons, not empty.

    Raises:
        UserError: the file is missing or broken.
        RecordError: a record is refused; the message names it.
    """

    def __init__(
        self, path: str | os.PathLike, damaged: Callable[[RecordError], None] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.stamp = stamp_of(self.path)
        self.tally = Tally()
        source = CocoSource(path)
        images, read, image_spans = ImageTable(), array("q"), array("q")
        rows = _noting(source.elements("images"), read)
        for image in iter_images(rows, self.path, images, need_name=True, damaged=damaged):
            images.add(image)
            image_spans.extend(read[-2:])
        owners, numbers, spans = array("i"), array("q"), array("q")
        scores, areas, is_plain = array("f"), array("f"), bytearray()
        masks, maskless = 0, Tally()
        records = _noting(source.elements("annotations"), spans)
        for item in iter_objects(
            records, images, self.path, drawn=False, tally=self.tally, damaged=damaged
        ):
            owners.append(images.rows[item.image_id])
            numbers.append(item.where.index)
            scores.append(item.score)
            areas.append(item.box[2] * item.box[3] if math.isnan(item.area) else item.area)
            is_plain.append(item.has_mask and not item.crowd and not item.empty)
            masks += item.has_mask
            if reason := why_useless(item, box_only=False):
                (self.tally if item.has_mask else maskless).note(reason, item.where)
        self.box_only = not masks and len(owners) > 0
        if not self.box_only:
            self.tally.add(maskless)
        ids = list(images.rows)
        order = np.array(sorted(range(len(ids)), key=lambda row: id_order(ids[row])), np.int64)
        self._images = np.array(image_spans, np.int64).reshape(-1, 2)[order]
        rank = np.empty(len(ids), np.int64)
        rank[order] = np.arange(len(ids))
        owner = rank[np.array(owners, np.int64)]
        by_image = np.argsort(owner, kind="stable")
        kept = np.array(numbers, np.int64)[by_image]
        self._annotations = np.array(spans, np.int64).reshape(-1, 2)[kept]
        self.first = np.searchsorted(owner[by_image], np.arange(len(ids) + 1))
        self.scores = np.array(scores, np.float32)[by_image]
        self.areas = np.array(areas, np.float32)[by_image]
        self.is_plain = np.frombuffer(is_plain, bool)[by_image]

    def save(self, path: str | os.PathLike) -> None:
        """Write the index, so that ``load`` need not read the file again."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with atomic_path(path) as part, open(part, "wb") as file:
            np.savez(file, box_only=np.array(self.box_only), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike, json_file: str | os.PathLike) -> CocoIndex:
        """Read an index that ``save`` wrote; its ``tally`` is empty.

        Args:
            path: the index.
            json_file: the COCO JSON that it is of, unchanged; that is the caller's to know.

        Raises:
            UserError: the JSON cannot be read.
            ValueError, OSError, KeyError: the index cannot.
        """
        index = object.__new__(cls)
        index.path = os.fspath(json_file)
        index.stamp = stamp_of(index.path)
        index.tally = Tally()
        with np.load(path, allow_pickle=False) as arrays:
            for name in _ARRAYS:
                setattr(index, name, arrays[name])
            index.box_only = bool(arrays["box_only"])
        return index

    def __len__(self) -> int:
        return len(self._images)

    def spans(self, place: int) -> Spans:
        """Return where the image at a place is, for ``read_image``."""
        own = self._annotations[self.first[place] : self.first[place + 1]]
        return (*self._images[place].tolist(), *own.ravel().tolist())

    def image(self, place: int) -> ImageInfo:
        """Read the image at a place, without its annotations."""
        return read_image(self.path, self.stamp, self.spans(place)[:2])[0]

    def read(self, place: int) -> tuple[ImageInfo, list[Instance]]:
        """Read the image at a place and its objects, those that are of no use included."""
        return read_image(self.path, self.stamp, self.spans(place))


def read_image(path: str, stamp: Stamp, spans: Spans) -> tuple[ImageInfo, list[Instance]]:
    """Read an image and its objects.

    Args:
        path: the COCO JSON.
        stamp: of the file, when it was indexed.
        spans: of the image, see ``CocoIndex.spans``.

    Raises:
        UserError: the file is gone or has changed.
    """
    content = _opened(path, stamp)
    image, *annotations = (
        json.loads(content[start:end]) for start, end in zip(spans[::2], spans[1::2], strict=True)
    )
    images = read_images([image], path)
    (info,) = images.values()
    return info, list(iter_objects(annotations, images, path, trusted=True))


def stamp_of(path: str) -> Stamp:
    """Return what tells one content of a file from another.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the COCO file {path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _noting(elements: Iterable[Element], spans: array) -> Iterator[Any]:
    """Yield the elements' values, and append where they are to ``spans``."""
    for element in elements:
        spans.extend((element.start, element.end))
        yield element.value


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: Stamp) -> mmap.mmap:
    """Map the file's bytes; the system keeps of them in memory what it likes."""
    try:
        if stamp_of(path) == stamp:
            with Path(path).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    raise UserError(f"{path} was changed while it was in use; start again")
